-- Limit what all tables of a run hold together; an empty value is unlimited. What is held already stays.
-- Returns {max_groups or '', max_bytes or '', groups, bytes}.   Errors: UNKNOWN_RUN
local policy = KEYS[1]              -- hash  the run's policy clock
local quota = KEYS[2]               -- hash  max_groups, max_bytes
local usage = KEYS[3]               -- hash  groups, bytes
local run = ARGV[1]
local change = tonumber(ARGV[2])    -- 0 only reads
local max_groups = ARGV[3]
local max_bytes = ARGV[4]

if redis.call('EXISTS', policy) == 0 then
  return redis.error_reply(string.format('UNKNOWN_RUN there is no run %s; create a table in it first', run))
end
if change == 1 then
  redis.call('DEL', quota)
  if max_groups ~= '' then
    redis.call('HSET', quota, 'max_groups', max_groups)
  end
  if max_bytes ~= '' then
    redis.call('HSET', quota, 'max_bytes', max_bytes)
  end
end
local limits = redis.call('HMGET', quota, 'max_groups', 'max_bytes')
local held = redis.call('HMGET', usage, 'groups', 'bytes')
return { limits[1] or '', limits[2] or '', tonumber(held[1] or 0), tonumber(held[2] or 0) }
