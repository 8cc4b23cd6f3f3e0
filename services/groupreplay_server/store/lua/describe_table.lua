-- Read the whole state of a table at one moment.
-- Returns {config, policy_version, fresh, replay, leased, leases, state, counters, missing, tasks,
-- oldest and newest version in replay or ''}.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE
if not limits.fill then
  return no_such_table()
end
catch_up()
return describe()
