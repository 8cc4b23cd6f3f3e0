-- List payloads that nobody needs any more, oldest first; none while a snapshot that may need them is being read.
-- Returns a list of group_id/payload_ref.
local at_most = tonumber(ARGV[4])

redis.call('ZREMRANGEBYSCORE', holds, '-inf', now_ms)
if redis.call('ZCARD', holds) > 0 then
  return {}
end
return redis.call('ZRANGE', garbage, 0, at_most - 1)
