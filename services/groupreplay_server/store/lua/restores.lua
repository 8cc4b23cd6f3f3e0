-- Put after leases.lua: a table that is being restored. Its keys fill up while its config lacks `fill`, so that for all
-- operations there is no such table, until finish_restore adds that.

-- Remove what an unfinished restore wrote; its payloads become garbage.
local function undo_restore()
  local flat = redis.call('HGETALL', facts)
  for i = 1, #flat, 2 do
    local payload_ref = unpack_fact(flat[i + 1]).payload_ref
    if payload_ref ~= '' then
      redis.call('ZADD', garbage, now_ms, flat[i] .. '/' .. payload_ref)
    end
  end
  redis.call('DEL', config, state, fresh, recency, arrival, priority, divergence, clock, weights, sums, born, headers,
    facts, marks, uses, returns)
end

-- Whether an unfinished restore still has time; where its time is up it is undone.
local function is_being_restored()
  local until_ms = redis.call('HGET', state, 'restoring_until_ms')
  if until_ms and tonumber(until_ms) > now_ms then
    return true
  elseif until_ms then
    undo_restore()
  end
  return false
end

local function is_attempt(attempt)
  return redis.call('HGET', state, 'restoring') == attempt
end

local function restore_lost()
  return fail('LEASE_EXPIRED', 'the restore of table %s stood still for too long, or another attempt took over; '
    .. 'restore it again', topic)
end
