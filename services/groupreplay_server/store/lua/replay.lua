-- Put after prelude.lua: the replay groups of a table. They join at commit (or at insert, where the table only
-- samples), stand in one index for each order that the table's sampler and remover go by, and leave.
--
-- The clock draws proportionally to weight: an item of weight w arrives as in a Poisson process of rate w, next at
-- now + E/w. The first arrivals after now are a draw of distinct items by successive sampling; whatever is drawn or
-- passed over is armed anew from the time of the last one drawn, so no draw depends on those before.
-- Recency costs no rewriting: in rate = weight * decay^(reference - version) the current version cancels out.
local MOST_ARRIVALS = 4294967296 -- since time 0, on average, beyond which doubles lose too much of now + E/w
local MOST_WEIGHT = 1e100
local LEAST_PROBABILITY = 1e-300
local MORE_THAN_NEEDED = 8 -- groups read beyond those that a draw lacks

local orders = {
  arrival = limits.sampler == 'fifo' or limits.sampler == 'lifo' or limits.remover == 'fifo'
    or limits.remover == 'lifo',
  priority = limits.sampler == 'max_priority' or limits.remover == 'lowest_priority',
  divergence = limits.sampler == 'min_divergence',
  clock = limits.sampler == 'prioritized' or limits.sampler == 'uniform',
}
local decays = limits.sampler == 'prioritized' and limits.recency_decay < 1

local function unpack_mark(packed)
  local fields = packed and cmsgpack.unpack(packed) or {}
  return { priority = fields[1] or nil, kl = fields[2] or nil, ess = fields[3] or nil }
end

local function read_mark(id)
  return unpack_mark(redis.call('HGET', marks, id))
end

-- Weight of a group without its recency; its mark is read where it is not given.
local function weigh(id, fact, mark)
  if limits.sampler == 'uniform' then
    return 1
  end
  mark = mark or read_mark(id)
  local weight = math.min((mark.priority or fact.priority) ^ limits.alpha, MOST_WEIGHT)
  if limits.use_decay < 1 then
    weight = weight * limits.use_decay ^ tonumber(redis.call('HGET', uses, id) or 0)
  end
  if limits.ess_alpha > 0 then
    weight = weight * (mark.ess or 1) ^ limits.ess_alpha
  end
  return weight * math.exp(-limits.kl_decay * (mark.kl or 0))
end

-- The clock of this call: read when first needed, written when changed.
local pulse
local function read_pulse()
  if not pulse then
    local values = redis.call('HMGET', state, 'clock_now', 'clock_reference')
    if not values[1] then
      values = { 0, version }
      redis.call('HSET', state, 'clock_now', 0, 'clock_reference', version)
    end
    pulse = { now = tonumber(values[1]), reference = tonumber(values[2]) }
  end
  return pulse
end

local function write_pulse()
  redis.call('HSET', state, 'clock_now', pulse.now, 'clock_reference', pulse.reference)
end

local function relative_recency(version_min)
  return decays and limits.recency_decay ^ (read_pulse().reference - version_min) or 1
end

-- Add changes to the sum of weights of a version, one by one, and groups to their number. What each addition rounds
-- away is kept in e:version (Neumaier), or small weights would drown in the rounding of large ones that left.
local function shift_sum(version_min, groups, ...)
  local key = decays and version_min or 0
  if redis.call('HINCRBY', sums, 'n:' .. key, groups) <= 0 then
    redis.call('HDEL', sums, 'n:' .. key, 'w:' .. key, 'e:' .. key)
    return
  end
  local kept = redis.call('HMGET', sums, 'w:' .. key, 'e:' .. key)
  local sum, lost = tonumber(kept[1] or 0), tonumber(kept[2] or 0)
  for _, change in ipairs({ ... }) do
    local rounded = sum + change
    local added = rounded - sum
    lost = lost + (sum - (rounded - added)) + (change - added)
    sum = rounded
  end
  redis.call('HSET', sums, 'w:' .. key, sum, 'e:' .. key, lost)
end

-- Sum of the rates of all replay groups, and the newest version among them.
local function total_rate()
  local total, newest, flat = 0, nil, redis.call('HGETALL', sums)
  for i = 1, #flat, 2 do
    local kind, version_min = string.match(flat[i], '^(%a):(.*)')
    if kind ~= 'n' then
      version_min = tonumber(version_min)
      total = total + tonumber(flat[i + 1]) * relative_recency(version_min)
      newest = math.max(newest or version_min, version_min)
    end
  end
  return total, newest
end

-- A sampling time after now for a group of this weight.
local function next_time(fact, weight)
  local rate = weight * relative_recency(fact.version_min)
  return rate > 0 and read_pulse().now + exponential() / rate or 'inf'
end

local function set_time(id, fact, weight)
  redis.call('ZADD', clock, next_time(fact, weight), id)
end

-- Give a group its next sampling time, by its weight as it is now.
local function arm(id, fact, mark)
  local weight, before = weigh(id, fact, mark), tonumber(redis.call('HGET', weights, id) or nil)
  if weight ~= before then
    shift_sum(fact.version_min, before and 0 or 1, 0 - (before or 0), weight)
    redis.call('HSET', weights, id, weight)
  end
  set_time(id, fact, weight)
end

-- Bring time 0 and the reference version near before a draw, where their distance would cost precision. Returns the
-- total rate. Whether to do so never depends on the sampling times, so all of them may be drawn anew: the clock has no
-- memory. Takes time for every group, once in billions of draws or hundreds of versions.
local function tune_clock()
  local total, newest = total_rate()
  local recency_of_newest = newest and relative_recency(newest) or 1
  if recency_of_newest > MOST_WEIGHT or recency_of_newest < 1 / MOST_WEIGHT
    or read_pulse().now * total > MOST_ARRIVALS then
    pulse.now, pulse.reference = 0, decays and newest or version
    write_pulse()
    each_group(redis.call('ZRANGE', clock, 0, -1), function(id, fact)
      set_time(id, fact, tonumber(redis.call('HGET', weights, id)))
    end)
    total = total_rate()
  end
  return total
end

-- Put a group where its uses and its mark say.
local function put_in_order(id, fact, mark)
  if orders.priority then
    redis.call('ZADD', priority, (mark or read_mark(id)).priority or fact.priority, id)
  end
  if orders.divergence then
    redis.call('ZADD', divergence, (mark or read_mark(id)).kl or 0, id)
  end
  if orders.clock then
    arm(id, fact, mark)
  end
end

-- A page of {id, fact} joins replay.
local function join_replay(page)
  local scores, bytes = {}, 0
  for i, item in ipairs(page) do
    scores[2 * i - 1], scores[2 * i] = item.fact.version_min * 4294967296 + item.fact.sequence, item.id
    bytes = bytes + item.fact.bytes
  end
  redis.call('ZADD', recency, unpack(scores))
  redis.call('HINCRBY', state, 'replay_bytes', bytes)
  for _, item in ipairs(page) do
    if orders.arrival then
      redis.call('ZADD', arrival, item.fact.sequence, item.id)
    end
    put_in_order(item.id, item.fact)
  end
end

local function leave_replay(id, fact)
  if redis.call('ZREM', recency, id) == 0 then
    return
  end
  redis.call('HINCRBY', state, 'replay_bytes', 0 - fact.bytes)
  redis.call('ZREM', arrival, id)
  redis.call('ZREM', priority, id)
  redis.call('ZREM', divergence, id)
  local weight = redis.call('HGET', weights, id)
  if weight then
    redis.call('ZREM', clock, id)
    redis.call('HDEL', weights, id)
    shift_sum(fact.version_min, -1, -tonumber(weight))
  end
end

-- What a group's place depends on has changed: its uses or its marks.
local function place_anew(id, fact)
  if redis.call('ZSCORE', recency, id) then
    put_in_order(id, fact)
  end
end

-- Take note of what callers found out about groups: {id, priority, kl, ess, fact} each; '' leaves what was known.
local function set_marks(items)
  each_page(items, function(page)
    local ids, mark_of, changed = {}, {}, {}
    for i, item in ipairs(page) do
      ids[i] = item.id
    end
    for i, packed in ipairs(redis.call('HMGET', marks, unpack(ids))) do
      local item, mark = page[i], mark_of[ids[i]] or unpack_mark(packed)
      mark.priority, mark.kl = tonumber(item.priority) or mark.priority, tonumber(item.kl) or mark.kl
      mark.ess = tonumber(item.ess) or mark.ess
      mark_of[ids[i]] = mark
      changed[2 * i - 1] = ids[i]
      changed[2 * i] = cmsgpack.pack({ mark.priority or false, mark.kl or false, mark.ess or false })
    end
    redis.call('HSET', marks, unpack(changed))
    for i, score in ipairs(redis.call('ZMSCORE', recency, unpack(ids))) do
      if score then
        put_in_order(ids[i], page[i].fact, mark_of[ids[i]])
      end
    end
  end)
end

-- Forget a group that no index and no lease names any more.
local function erase(id, fact)
  redis.call('HDEL', headers, id)
  redis.call('HDEL', facts, id)
  redis.call('HDEL', marks, id)
  redis.call('HDEL', uses, id)
  redis.call('HDEL', returns, id)
  redis.call('HINCRBY', state, 'payload_bytes', 0 - fact.bytes) -- not -0, which is no integer to Redis
  redis.call('HINCRBY', usage, 'bytes', 0 - fact.bytes)
  redis.call('HINCRBY', usage, 'groups', -1)
  drop_ratios(id)
  if fact.payload_ref ~= '' then
    redis.call('ZADD', garbage, now_ms, id .. '/' .. fact.payload_ref)
  end
end

-- A group leaves for good; its data stays while a lease still holds it.
local function discard(id, fact, reason)
  if redis.call('ZREM', fresh, id) == 1 then
    if fact.effective then
      redis.call('HINCRBY', state, 'fresh_effective', -1)
    end
  else
    leave_replay(id, fact)
  end
  redis.call('ZREM', born, id)
  count('gone_' .. reason, 1)
  count_task('gone_' .. reason, fact.task)
  redis.call('ZADD', seen, now_ms, id)
  if not redis.call('HGET', pins, id) then
    erase(id, fact)
  end
end

-- Take a pin off these groups; facts by id, as all have some that are pinned. Those that left meanwhile go.
local function unpin(ids, known)
  each_page(ids, function(page)
    local last = {}
    for i, held in ipairs(redis.call('HMGET', pins, unpack(page))) do
      if tonumber(held or 0) > 1 then
        redis.call('HINCRBY', pins, page[i], -1)
      else
        last[#last + 1] = page[i]
      end
    end
    if #last > 0 then
      redis.call('HDEL', pins, unpack(last))
      for i, score in ipairs(redis.call('ZMSCORE', recency, unpack(last))) do
        if not score then
          erase(last[i], known[last[i]])
        end
      end
    end
  end)
end

-- The group that the remover takes next; nil where replay is empty.
local function next_to_leave()
  if limits.remover == 'fifo' then
    return redis.call('ZRANGE', arrival, 0, 0)[1]
  elseif limits.remover == 'lifo' then
    return redis.call('ZRANGE', arrival, 0, 0, 'REV')[1]
  elseif limits.remover == 'lowest_priority' then
    return redis.call('ZRANGE', priority, 0, 0)[1]
  end
  return redis.call('ZRANGE', recency, 0, 0)[1]
end

local function evict()
  local id = next_to_leave()
  if id then
    discard(id, read_fact(id), 'evicted')
  end
  return id ~= nil
end

-- Make room for so many more bytes of payload, as far as replay groups can.
local function evict_for_bytes(more)
  while limits.capacity_bytes and tonumber(redis.call('HGET', state, 'payload_bytes') or 0) + more
    > limits.capacity_bytes and evict() do
  end
end

-- Join replay, {id, fact} each, after making room. Where there is none for all, one after the other: a remover takes
-- those that have just joined, too. Room first, or a lifo remover would always take the newcomer.
local function join_with_room(items)
  if redis.call('ZCARD', recency) + #items <= limits.replay_capacity then
    each_page(items, join_replay)
    return
  end
  for _, item in ipairs(items) do
    while redis.call('ZCARD', recency) >= limits.replay_capacity and evict() do
    end
    join_replay({ item })
  end
end

-- So many replay groups in the sampler's order, from offset start: {ids, sampling times or nil}.
local function page_of_replay(start, size)
  local last = start + size - 1
  if orders.clock then
    local flat, ids, times = redis.call('ZRANGE', clock, start, last, 'WITHSCORES'), {}, {}
    for i = 1, #flat, 2 do
      ids[#ids + 1], times[#times + 1] = flat[i], tonumber(flat[i + 1])
    end
    return ids, times
  elseif limits.sampler == 'fifo' then
    return redis.call('ZRANGE', arrival, start, last)
  elseif limits.sampler == 'lifo' then
    return redis.call('ZRANGE', arrival, start, last, 'REV')
  elseif limits.sampler == 'max_priority' then
    return redis.call('ZRANGE', priority, start, last, 'REV')
  elseif limits.sampler == 'min_divergence' then
    return redis.call('ZRANGE', divergence, start, last)
  end
  local newest = (version - limits.min_staleness + 1) * 4294967296
  return redis.call('ZRANGE', recency, '(' .. string.format('%.0f', newest), '-inf', 'BYSCORE', 'REV', 'LIMIT', start,
    size)
end

local function is_drawable(id, fact, used)
  if is_stale(fact) or is_expired(fact) or staleness(fact) < limits.min_staleness then
    return false
  end
  if limits.max_times_sampled and used >= limits.max_times_sampled then
    return false
  end
  return limits.max_kl == nil or (read_mark(id).kl or 0) <= limits.max_kl
end

-- Why a group that a draw meets leaves: it is too old, or used up and in no lease that might give a use back.
local function why_leave(id, fact, used)
  if is_stale(fact) and limits.staleness_rule ~= 'withhold' then
    return 'stale'
  elseif is_expired(fact) then
    return 'expired'
  elseif limits.max_times_sampled and used >= limits.max_times_sampled and not redis.call('HGET', pins, id) then
    return 'exhausted'
  end
end

-- Draw at most `slots` replay groups, each at most once, and only where accept(id, fact). Those met on the way that
-- have no future leave. Returns a list of {id, fact, weight or nil, probability}.
local function draw_replay(slots, accept)
  local drawn, passed, leaving = {}, {}, {}
  local start, most, exhausted = 0, math.max(4096, 16 * slots), false
  local last_time, passed_in_time
  local total = orders.clock and slots > 0 and tune_clock() or 0
  while #drawn < slots and start < most and not exhausted do
    -- Few groups are passed over, as a rule: most draws read little more than they need.
    local size = math.min(PAGE, slots - #drawn + MORE_THAN_NEEDED)
    local ids, times = page_of_replay(start, size)
    exhausted = #ids < size
    start = start + #ids
    local used = #ids > 0 and redis.call('HMGET', uses, unpack(ids))
    local known_weights = times and #ids > 0 and redis.call('HMGET', weights, unpack(ids))
    for i, fact in ipairs(read_facts(ids)) do
      local id, times_used = ids[i], tonumber(used[i] or 0)
      if #drawn == slots or (times and times[i] == math.huge) then
        exhausted = true
        break
      elseif is_drawable(id, fact, times_used) and accept(id, fact) then
        local probability, weight = 1, nil
        if times then
          last_time, passed_in_time = times[i], #passed
          weight = tonumber(known_weights[i])
          probability = weight * relative_recency(fact.version_min) / total
          probability = math.max(LEAST_PROBABILITY, math.min(probability, 1))
        end
        drawn[#drawn + 1] = { id = id, fact = fact, weight = weight, probability = probability }
      elseif why_leave(id, fact, times_used) then
        leaving[#leaving + 1] = { id, fact, why_leave(id, fact, times_used) }
      else
        passed[#passed + 1] = { id, fact }
      end
    end
  end
  if last_time then
    read_pulse().now = last_time
    write_pulse()
    for i = 1, passed_in_time do
      arm(passed[i][1], passed[i][2])
    end
  end
  for _, found in ipairs(leaving) do
    discard(found[1], found[2], found[3])
  end
  return drawn
end

-- (N * probability)^-beta, over the largest in the batch: what undoes the bias of the draw. 1 for all where beta is 0.
local function importance_weights(drawn, groups)
  local found, largest = {}, 0
  for i, item in ipairs(drawn) do
    found[i] = orders.clock and (groups * item.probability) ^ -limits.importance_beta or 1
    largest = math.max(largest, found[i])
  end
  for i = 1, #found do
    found[i] = found[i] / largest
  end
  return found
end
