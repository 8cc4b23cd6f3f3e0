-- Read what a committed training step was given.
-- Returns {what lease_reply (leases.lua) does, lease_id, holder, seed, committed_ms, consumed ids, missing}; where
-- groups of the step are no longer there, missing is their number, and headers and payload_refs are left out.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE, UNKNOWN_STEP
local step = ARGV[4]

if not limits.fill then
  return no_such_table()
end
catch_up()
local packed = redis.call('HGET', lineage, step)
if not packed then
  return fail('UNKNOWN_STEP', 'the lineage of table %s has no step %s: it was never committed here, or is not among '
    .. 'the last lineage_steps %d', topic, step, limits.lineage_steps)
end
local record = cmsgpack.unpack(packed)
local missing, ids = 0, {}
for i, entry in ipairs(record.entries) do
  ids[i] = entry[1]
  missing = missing + (redis.call('HEXISTS', facts, entry[1]) == 0 and 1 or 0)
end
local reply
if missing == 0 then
  reply = lease_reply(record)
else
  local groups = {}
  for i, entry in ipairs(record.entries) do
    groups[i] = {
      '', ids[i], '', entry[2], entry[3], entry[4], entry[5], string.format('%.17g', entry[6]),
      string.format('%.17g', entry[7]),
    }
  end
  reply = {
    1, record.deadline_ms, record.version, record.batch_size, #record.consumed, record.fresh_effective, groups,
  }
end
return { reply, record.lease_id, record.holder, record.seed, record.committed_ms, record.consumed, missing }
