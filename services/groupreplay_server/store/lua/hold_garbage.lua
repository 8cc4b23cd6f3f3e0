-- Move the deadline of a snapshot's hold on garbage, or end it.
-- Returns 1, or 0 where the hold has ended before.
local snapshot_id = ARGV[4]
local hold_until_ms = tonumber(ARGV[5]) -- 0 ends it

local deadline = redis.call('ZSCORE', holds, snapshot_id)
if not deadline then
  return 0
elseif hold_until_ms == 0 or tonumber(deadline) <= now_ms then
  redis.call('ZREM', holds, snapshot_id)
  return hold_until_ms == 0 and 1 or 0
end
redis.call('ZADD', holds, hold_until_ms, snapshot_id)
return 1
