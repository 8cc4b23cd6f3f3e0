-- Read the whole state of a table at one moment.
-- Returns {config, policy_version, fresh, replay, leased, leases, state, counters, missing, tasks}.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE
if not limits.fill then
  return no_such_table()
end
catch_up()
return {
  redis.call('HGETALL', config),
  version,
  redis.call('ZCARD', fresh),
  redis.call('ZCARD', recency),
  redis.call('HLEN', leased),
  redis.call('ZCARD', leases),
  redis.call('HGETALL', state),
  redis.call('HGETALL', counters),
  math.max(0, wanted_by_waiting() - available()),
  redis.call('HGETALL', tasks),
}
