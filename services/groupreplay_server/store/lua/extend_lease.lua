-- Move the deadline of a live lease.
-- Returns the new deadline.   Errors: UNKNOWN_LEASE, LEASE_EXPIRED, STEP_CONFLICT
local lease_id = ARGV[4]
local deadline_ms = tonumber(ARGV[5])

catch_up()
local lease, refusal = live_lease(lease_id)
if not lease then
  return refusal
end
lease.deadline_ms = deadline_ms
redis.call('HSET', records, lease_id, cmsgpack.pack(lease))
redis.call('ZADD', leases, deadline_ms, lease_id)
return deadline_ms
