#!lua
-- Claims the records of keys.
--
-- KEYS    the records' keys
-- ARGV    lease and retention (ms); then, for each key, the record that is made if there is none, all
--         but its deadline
-- Answers for each key: 1 acquired by a new record, {1, fence, attempt} acquired, {2, ms left} in
--         progress, {3} completed, {4} dead-lettered, {5} conflict, or an error.
--
-- The record is one string: state (byte 1: P in progress, F failed, U unused, D dead-lettered,
-- C completed), fence (2 to 6, big-endian as all numbers), owner (7 to 14), fingerprint (15 to 22,
-- zeros for none); then, unless completed: attempts (23 to 26), redrives (27 to 30), nonce (31 to 38),
-- deadline (39 to 44, ms since 1970). Up to 44 bytes Redis keeps a string together with its header.
local retention = ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local deadline = struct.pack('>I6', now + ARGV[1])

-- Claims a key that has a record.
local function meet(key, record, new)
    local state, size = string.sub(record, 1, 1), string.len(record)
    local is_open = size == 44 and string.find('PFUD', state, 1, true)
    if not is_open and not (size == 22 and state == 'C') then
        return redis.error_reply('FOREIGN the key holds no record of backstop')
    end
    local none = '\0\0\0\0\0\0\0\0'
    local fingerprint, known = string.sub(new, 15, 22), string.sub(record, 15, 22)
    local same_body = known == fingerprint or known == none or fingerprint == none

    -- Whoever acts on an answer acts on the record: it is written again, so that a WAIT that follows
    -- covers it also for who only asks again.
    if state == 'C' then
        redis.call('SET', key, record, 'KEEPTTL')
        return {same_body and 3 or 5}
    end
    local fence = struct.unpack('>I5', record, 2)
    local attempts, redriven = struct.unpack('>I4I4', record, 23)
    -- The new record counts this attempt already.
    local first_attempt, redrives = struct.unpack('>I4I4', new, 23)
    attempts = math.min(attempts + 1, 4294967295)

    if state == 'P' and string.sub(record, 7, 14) == string.sub(new, 7, 14)
        and string.sub(record, 31, 38) == string.sub(new, 31, 38) then
        redis.call('SET', key, record, 'KEEPTTL')
        return {1, fence, attempts - 1}
    end
    if state == 'D' then
        if redrives <= redriven and same_body then
            redis.call('SET', key, record, 'KEEPTTL')
            return {4}
        end
        attempts = first_attempt
    elseif not same_body then
        redis.call('SET', key, record, 'KEEPTTL')
        return {5}
    else
        local left = struct.unpack('>I6', record, 39) - now
        if state == 'P' and left > 0 then
            return {2, left}
        elseif redrives > redriven then
            attempts = first_attempt
        end
    end
    redis.call('SET', key, 'P' .. struct.pack('>I5', fence + 1) .. string.sub(new, 7, 22)
        .. struct.pack('>I4I4', attempts, math.max(redrives, redriven)) .. string.sub(new, 31, 38)
        .. deadline, 'PX', retention)
    return {1, fence + 1, attempts}
end

local answers = {}
for i, key in ipairs(KEYS) do
    local new = ARGV[i + 2]
    -- Most keys are new: one call makes the record or gives the one that is there. What is no string
    -- is an error of this key alone.
    local record = redis.pcall('SET', key, new .. deadline, 'NX', 'GET', 'PX', retention)
    if not record then
        answers[i] = 1
    elseif type(record) == 'table' then
        answers[i] = record
    else
        answers[i] = meet(key, record, new)
    end
end
return answers
