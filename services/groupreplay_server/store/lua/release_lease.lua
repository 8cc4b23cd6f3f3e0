-- Give the groups of a lease back: fresh ones to their place, replay ones get their use back.
-- Returns how many fresh groups went back; 0 when the lease had ended before.   Errors: UNKNOWN_LEASE, STEP_CONFLICT
local lease_id = ARGV[4]

catch_up()
local packed = redis.call('HGET', records, lease_id)
if not packed then
  return unknown_lease(lease_id)
end
local lease = cmsgpack.unpack(packed)
if lease.state == 'committed' then
  return fail('STEP_CONFLICT', 'lease %s of table %s was committed with step %d; its groups cannot go back',
    lease_id, topic, lease.step)
elseif lease.state ~= 'live' then
  return 0
end
local returned = give_back(lease_id, lease, 'released')
wake('fresh', redis.call('ZCARD', fresh))
wake('replay', redis.call('ZCARD', recency))
return returned
