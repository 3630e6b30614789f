#!lua flags=allow-oom
-- Completes or releases a claim. The record is described in claim.lua. It needs no new memory, and so
-- is not refused by a server that is full.
--
-- KEYS[1] the record's key
-- ARGV    fence and owner, as they stand in the record; state to come (F, U, D or C); retention (ms)
-- Answers 1 held, 0 fenced.
local key, wanted = KEYS[1], ARGV[2]

local record = redis.call('GET', key)
if not record or string.sub(record, 2, 14) ~= ARGV[1] then
    return 0
end
local state = string.sub(record, 1, 1)
if state == wanted then
    -- The answer was lost, and is given again; written, so that a WAIT that follows covers it.
    redis.call('SET', key, record, 'KEEPTTL')
    return 1
elseif state ~= 'P' then
    return 0
end
local ended = wanted .. string.sub(record, 2, 22)
if wanted == 'U' then
    local attempts = struct.unpack('>I4', record, 23)
    ended = ended .. struct.pack('>I4', attempts - 1) .. string.sub(record, 27)
elseif wanted ~= 'C' then
    ended = ended .. string.sub(record, 23)
end
redis.call('SET', key, ended, 'PX', ARGV[3])
return 1
