-- Read what decides whether a batch is ready, and who is there, at one moment.
-- Returns {fresh groups that a batch would take, of these effective, stale, passed over for their prompt,
-- drawable replay groups (of a page), leases {lease_id, holder, deadline_ms, groups, fresh}, producers {producer_id,
-- first_ms, last_ms, last_insert_ms, inserted, effective, refused, interval_s, status}, admissions {producer_id,
-- groups, deadline_ms}, waiting calls {wanted, until_ms}}.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE
local batch_size = tonumber(ARGV[4])

if not limits.fill then
  return no_such_table()
end
catch_up()

local takeable, effective, stale, passed_over, prompts = 0, 0, 0, 0, {}
local start = 0
while start < 16 * batch_size + PAGE do
  local ids = redis.call('ZRANGE', fresh, start, start + PAGE - 1)
  if #ids == 0 then
    break
  end
  start = start + #ids
  for _, fact in ipairs(read_facts(ids)) do
    local delivered = fact.effective or limits.fill == 'keep'
    if is_stale(fact) then
      stale = stale + 1
    elseif delivered and prompts[fact.prompt_id] and limits.allow_repeated_prompts == 0 then
      passed_over = passed_over + 1
    else
      takeable = takeable + 1
      effective = effective + (fact.effective and 1 or 0)
      prompts[fact.prompt_id] = delivered or prompts[fact.prompt_id]
    end
  end
end

local drawable, ids = 0, page_of_replay(0, PAGE)
local used = #ids > 0 and redis.call('HMGET', uses, unpack(ids))
for i, fact in ipairs(read_facts(ids)) do
  drawable = drawable + (is_drawable(ids[i], fact, tonumber(used[i] or 0)) and 1 or 0)
end

local held = {}
local live = redis.call('ZRANGE', leases, 0, AT_ONCE - 1, 'WITHSCORES')
for i = 1, #live, 2 do
  local lease = cmsgpack.unpack(redis.call('HGET', records, live[i]))
  held[#held + 1] = { live[i], lease.holder, tonumber(live[i + 1]), #lease.entries, #lease.consumed }
end
local grants, calls = {}, {}
local all = redis.call('HGETALL', admitted)
for i = 1, #all, 2 do
  local grant = cmsgpack.unpack(all[i + 1])
  if grant[2] > now_ms then
    grants[#grants + 1] = { all[i], grant[1], grant[2] }
  end
end
all = redis.call('HGETALL', waiting)
for i = 1, #all, 2 do
  local call = cmsgpack.unpack(all[i + 1])
  if call[2] > now_ms then
    calls[#calls + 1] = { call[1], call[2] }
  end
end
return { takeable, effective, stale, passed_over, drawable, held, known_producers(), grants, calls }
