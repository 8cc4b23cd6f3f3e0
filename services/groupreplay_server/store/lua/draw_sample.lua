-- Lease a draw of replay groups, by the table's sampler and within its rate limit.
-- Returns what lease_reply (leases.lua) does, or {0, groups wanted in replay, groups there, next end of a lease or 0}.
-- The id of a live lease returns that lease's groups again.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE, STEP_CONFLICT, INVALID_REQUEST
local lease_id = ARGV[4]             -- chosen by the caller, so a retry is safe
local batch_size = tonumber(ARGV[5]) -- groups to draw, at most
local deadline_ms = tonumber(ARGV[6])   -- when the lease ends
local holder = ARGV[7]               -- who takes it, for diagnosis

if not limits.fill then
  return no_such_table()
elseif limits.fill ~= 'sample' and limits.fill ~= 'replay' then
  return fail('INVALID_REQUEST', 'table %s has fill rule %s, which keeps no replay to sample from; use a table with '
    .. 'fill rule sample or replay', topic, limits.fill)
end
catch_up()
local known = known_lease(lease_id)
if known then
  return known[1]
end

local groups = redis.call('ZCARD', recency)
local wanted = limits.min_size_to_sample or 1
local allowed = batch_size
if limits.samples_per_insert then
  allowed = math.min(allowed, math.floor(samples_due(0) - limits.min_diff))
end

local drawn = {}
if groups >= wanted and allowed > 0 then
  local prompts = {}
  drawn = draw_replay(allowed, function(_, fact)
    if prompts[fact.prompt_id] and limits.allow_repeated_prompts == 0 then
      return false
    end
    prompts[fact.prompt_id] = true
    return true
  end)
end
if #drawn == 0 then
  return { 0, wanted, groups, tonumber(redis.call('ZRANGE', leases, 0, 0, 'WITHSCORES')[2] or 0) }
end

local entries = {}
deliver_drawn(entries, drawn, groups)
local lease = {
  holder = holder, deadline_ms = deadline_ms, batch_size = batch_size, fresh_effective = 0, consumed = {},
  entries = entries, sampled = true,
}
start_lease(lease_id, lease)
redis.call('HINCRBY', state, 'sampled', #entries)
count('samples', 1)
count('shortfall', batch_size - #entries)
wake('demand', 0) -- room for inserts, where the rate is limited
return lease_reply(lease)
