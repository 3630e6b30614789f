#!lua flags=allow-oom
-- Makes claims last. The record is described in claim.lua. It needs no new memory, and so is not
-- refused by a server that is full.
--
-- KEYS    the records' keys
-- ARGV    lease (ms); then, for each key, fence and owner, as they stand in the record
-- Answers for each key: 1 held, 0 fenced.
local lease = ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local deadline = struct.pack('>I6', now + lease)
local records = redis.call('MGET', unpack(KEYS))

local answers = {}
for i, key in ipairs(KEYS) do
    local record = records[i]
    if record and string.len(record) == 44 and string.sub(record, 1, 14) == 'P' .. ARGV[i + 1] then
        redis.call('SET', key, string.sub(record, 1, 38) .. deadline, 'KEEPTTL')
        redis.call('PEXPIRE', key, lease, 'GT')
        answers[i] = 1
    else
        answers[i] = 0
    end
end
return answers
