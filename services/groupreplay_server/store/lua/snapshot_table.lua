-- Read a whole table at one moment; payloads that leave afterwards stay until the reader is done.
-- Returns {what describe_table returns, the policy's fields, newest version, samples, groups}, each group {group_id,
-- place, header, payload_ref, bytes, sequence, effective, version_min, version_max, prompt_id, task, priority,
-- inserted_ms, priority or kl or ess fed back or '', uses, uses in live leases, returns}.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE
local snapshot_id = ARGV[4]             -- names the hold on garbage
local hold_until_ms = tonumber(ARGV[5]) -- when it ends, unless it is extended

if not limits.fill then
  return no_such_table()
end
catch_up()
redis.call('ZADD', holds, hold_until_ms, snapshot_id)

-- A live lease counts as what it will be once it ends unused: what it took from the rate limit, and uses.
local in_leases, sampled = {}, tonumber(redis.call('HGET', state, 'sampled') or 0)
for _, lease_id in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
  local lease = cmsgpack.unpack(redis.call('HGET', records, lease_id))
  for _, entry in ipairs(lease.entries) do
    in_leases[entry[1]] = (in_leases[entry[1]] or 0) + 1
  end
  sampled = sampled - (lease.sampled and #lease.entries or 0)
end

local function digits(value)
  return value and string.format('%.17g', value) or ''
end

local groups, newest = {}, 0
local function read_place(place, ids)
  for first = 1, #ids, PAGE do
    local page = { unpack(ids, first, math.min(first + PAGE - 1, #ids)) }
    local page_headers = redis.call('HMGET', headers, unpack(page))
    local page_marks = redis.call('HMGET', marks, unpack(page))
    local page_uses = redis.call('HMGET', uses, unpack(page))
    local page_returns = redis.call('HMGET', returns, unpack(page))
    for i, fact in ipairs(read_facts(page)) do
      local mark = page_marks[i] and cmsgpack.unpack(page_marks[i]) or {} -- priority, kl, ess
      newest = math.max(newest, fact.version_max)
      groups[#groups + 1] = {
        page[i], place, page_headers[i], fact.payload_ref, fact.bytes, fact.sequence, fact.effective and 1 or 0,
        fact.version_min, fact.version_max, fact.prompt_id, fact.task, digits(fact.priority), fact.inserted_ms,
        digits(mark[1]), digits(mark[2]), digits(mark[3]), tonumber(page_uses[i] or 0),
        in_leases[page[i]] or 0, tonumber(page_returns[i] or 0), digits(fact.reward_mean),
      }
    end
  end
end
read_place('fresh', redis.call('ZRANGE', fresh, 0, -1))
read_place('leased', redis.call('HKEYS', leased))
read_place('replay', redis.call('ZRANGE', recency, 0, -1))
return { describe(), redis.call('HGETALL', policy), newest, sampled, groups }
