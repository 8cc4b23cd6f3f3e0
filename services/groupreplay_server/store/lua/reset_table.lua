-- Remove every group of a table, and what has come of partial ones; its leases end, its configuration and counts stay.
-- Returns how many groups left.   Errors: UNKNOWN_RUN, UNKNOWN_TABLE
if not limits.fill then
  return no_such_table()
end
catch_up()
for _, lease_id in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
  give_back(lease_id, cmsgpack.unpack(redis.call('HGET', records, lease_id)), 'released')
end
forget_steps_after(-1)
local removed = redis.call('ZCARD', fresh) + redis.call('ZCARD', recency)
local function leave(id, fact)
  discard(id, fact, 'reset')
end
each_group(redis.call('ZRANGE', fresh, 0, -1), leave)
each_group(redis.call('ZRANGE', recency, 0, -1), leave)
redis.call('DEL', admitted)
drop_partials_after(-1)
wake('demand', 0)
return removed
