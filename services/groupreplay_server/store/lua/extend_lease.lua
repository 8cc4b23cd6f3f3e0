-- Move the deadline of a live lease.
-- Returns the new deadline.   Errors: UNKNOWN_LEASE, LEASE_EXPIRED, STEP_CONFLICT
local lease_id = ARGV[4]
local deadline_ms = tonumber(ARGV[5])

catch_up()
local packed = redis.call('HGET', records, lease_id)
if not packed then
  return unknown_lease(lease_id)
end
local lease = cmsgpack.unpack(packed)
if lease.state == 'committed' then
  return fail('STEP_CONFLICT', 'lease %s of table %s was committed with step %d', lease_id, topic, lease.step)
elseif lease.state ~= 'live' then
  return fail('LEASE_EXPIRED', 'lease %s of table %s was %s, its groups went back; take a new batch, and extend sooner',
    lease_id, topic, lease.state)
end
lease.deadline_ms = deadline_ms
redis.call('HSET', records, lease_id, cmsgpack.pack(lease))
redis.call('ZADD', leases, deadline_ms, lease_id)
return deadline_ms
