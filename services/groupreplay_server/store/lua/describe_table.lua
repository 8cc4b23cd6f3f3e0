-- Read the whole state of a table at one moment.
-- Returns {config, policy_version, fresh, replay, leased, leases, state, counters, missing}.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE
local fill = redis.call('HGET', config, 'fill')
if not fill then
  return no_such_table()
end
expire_leases()
return {
  redis.call('HGETALL', config),
  policy_version(),
  redis.call('ZCARD', fresh),
  redis.call('ZCARD', recency),
  redis.call('HLEN', leased),
  redis.call('ZCARD', leases),
  redis.call('HGETALL', state),
  redis.call('HGETALL', counters),
  math.max(0, wanted_by_waiting() - available(fill)),
}
