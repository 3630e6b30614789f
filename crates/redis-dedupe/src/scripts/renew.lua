#!lua flags=allow-oom
-- Makes a claim last. The record is described in claim.lua. It needs no new memory, and so is not
-- refused by a server that is full.
--
-- KEYS[1] the record's key
-- ARGV    fence and owner, as they stand in the record; lease (ms)
-- Answers 1 held, 0 fenced.
local key, lease = KEYS[1], ARGV[2]

local record = redis.call('GET', key)
if not record or string.len(record) ~= 44 or string.sub(record, 1, 14) ~= 'P' .. ARGV[1] then
    return 0
end
local time = redis.call('TIME')
local deadline = time[1] * 1000 + math.floor(time[2] / 1000) + lease
redis.call('SET', key, string.sub(record, 1, 38) .. struct.pack('>I6', deadline), 'KEEPTTL')
redis.call('PEXPIRE', key, lease, 'GT')
return 1
