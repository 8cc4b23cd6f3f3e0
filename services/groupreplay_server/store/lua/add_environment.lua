-- Give an environment of the Atropos API an id, and a name that no other has; keep what it said of itself.
-- Returns {id, name}.   Errors: none
local atropos = KEYS[1]      -- hash  what the Atropos API remembers of a table, as atropos_store.py reads it
local desired_name = ARGV[1]
local said = ARGV[2]         -- JSON object with at least one member

local id = redis.call('HINCRBY', atropos, 'environments', 1) - 1
local name = desired_name .. '_' .. redis.call('HINCRBY', atropos, 'named:' .. desired_name, 1) - 1
local known = string.format('{"env_id":%d,"name":%s,%s', id, cjson.encode(name), string.sub(said, 2))
redis.call('HSET', atropos, 'env:' .. id, known)
return { id, name }
