-- Write a page of groups of a table that is being restored; what was written before stays as it is.
-- Returns how many groups there are so far.   Errors: LEASE_EXPIRED
-- repeated: id, place, header, ref, bytes, order, std, low, high, prompt, task, priority, at, mark, kl, ess, uses, back
-- repeated: mean
local attempt = ARGV[4]
local until_ms = tonumber(ARGV[5]) -- when it is undone, unless more comes

if limits.fill or not is_attempt(attempt) then
  return restore_lost()
end
redis.call('HSET', state, 'restoring_until_ms', until_ms)
for i = 6, #ARGV, 19 do
  local id, place = ARGV[i], ARGV[i + 1]
  local fact = {
    payload_ref = ARGV[i + 3], bytes = tonumber(ARGV[i + 4]), sequence = tonumber(ARGV[i + 5]),
    effective = ARGV[i + 6] == '1', version_min = tonumber(ARGV[i + 7]), version_max = tonumber(ARGV[i + 8]),
    prompt_id = ARGV[i + 9], task = ARGV[i + 10], priority = tonumber(ARGV[i + 11]),
    inserted_ms = tonumber(ARGV[i + 12]), reward_mean = tonumber(ARGV[i + 18]),
  }
  local used, returned = tonumber(ARGV[i + 16]), tonumber(ARGV[i + 17])
  if redis.call('HEXISTS', facts, id) == 0 then
    redis.call('HSET', headers, id, ARGV[i + 2])
    redis.call('HSET', facts, id, pack_fact(fact))
    redis.call('HINCRBY', state, 'payload_bytes', fact.bytes)
    if ARGV[i + 13] .. ARGV[i + 14] .. ARGV[i + 15] ~= '' then
      set_marks({ { id = id, priority = ARGV[i + 13], kl = ARGV[i + 14], ess = ARGV[i + 15], fact = fact } })
    end
    if used > 0 then
      redis.call('HSET', uses, id, used)
    end
    if returned > 0 then
      redis.call('HSET', returns, id, returned)
    end
    if limits.ttl_s then
      redis.call('ZADD', born, fact.inserted_ms, id)
    end
    if place == 'replay' then
      join_replay({ { id = id, fact = fact } })
    else
      redis.call('ZADD', fresh, fact.sequence, id)
      redis.call('HINCRBY', state, 'fresh_effective', fact.effective and 1 or 0)
    end
  end
end
return redis.call('HLEN', facts)
