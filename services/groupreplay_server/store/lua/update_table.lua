-- Change limits of a table while it runs; what a new limit excludes leaves now (capacity) or when met (age, uses).
-- Returns the configuration.   Errors: UNKNOWN_RUN, UNKNOWN_TABLE
-- repeated: name, value
if not limits.fill then
  return no_such_table()
end
catch_up()
local had_ttl = limits.ttl_s
for i = 4, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', config, ARGV[i])
    limits[ARGV[i]] = nil
  else
    redis.call('HSET', config, ARGV[i], ARGV[i + 1])
    limits[ARGV[i]] = tonumber(ARGV[i + 1]) or ARGV[i + 1]
  end
end
while redis.call('ZCARD', recency) > limits.replay_capacity and evict() do
end
evict_for_bytes(0)
if limits.ttl_s and not had_ttl then
  local function note_birth(id, fact)
    redis.call('ZADD', born, fact.inserted_ms, id)
  end
  each_group(redis.call('ZRANGE', fresh, 0, -1), note_birth)
  each_group(redis.call('ZRANGE', recency, 0, -1), note_birth)
elseif not limits.ttl_s then
  redis.call('DEL', born)
end
for _, step in ipairs(redis.call('ZRANGE', logged, 0, -limits.lineage_payload_steps - 1)) do
  redis.call('HSET', lineage, step, cmsgpack.pack(unpin_step(step)))
end
for _, step in ipairs(redis.call('ZRANGE', logged, 0, -limits.lineage_steps - 1)) do
  forget_step(step)
end
wake('fresh', redis.call('ZCARD', fresh))
wake('replay', redis.call('ZCARD', recency))
wake('demand', 0)
wake('config', 0)
return redis.call('HGETALL', config)
