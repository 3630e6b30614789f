#!lua flags=allow-oom
-- Completes or releases claims. The record is described in claim.lua. It needs no new memory, and so
-- is not refused by a server that is full.
--
-- KEYS    the records' keys
-- ARGV    state to come (F, U, D or C) and retention (ms); then, for each key, fence and owner, as they
--         stand in the record
-- Answers for each key: 1 held, 0 fenced.
local wanted, retention = ARGV[1], ARGV[2]
local records = redis.call('MGET', unpack(KEYS))
-- What this call has written, for a key that comes again.
local written = {}

-- The record of a claim that ends now.
local function ended(record)
    local same = wanted .. string.sub(record, 2, 22)
    if wanted == 'C' then
        return same
    elseif wanted == 'U' then
        local attempts = struct.unpack('>I4', record, 23)
        return same .. struct.pack('>I4', attempts - 1) .. string.sub(record, 27)
    end
    return same .. string.sub(record, 23)
end

local answers = {}
for i, key in ipairs(KEYS) do
    local record = written[key] or records[i]
    local state = record and string.sub(record, 2, 14) == ARGV[i + 2] and string.sub(record, 1, 1)
    if state == 'P' then
        record = ended(record)
        redis.call('SET', key, record, 'PX', retention)
        written[key] = record
        answers[i] = 1
    elseif state == wanted then
        -- The answer was lost, and is given again; written, so that a WAIT that follows covers it.
        redis.call('SET', key, record, 'KEEPTTL')
        answers[i] = 1
    else
        answers[i] = 0
    end
end
return answers
