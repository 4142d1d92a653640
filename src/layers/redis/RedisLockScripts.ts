/**
 * The scripts of `RedisLockStore`.
 *
 * Every one works on one lock, in one hash slot: `KEYS[1]` is its last grant, the
 * text `<fence> <end, Unix ms> <owner>` (the owner is empty once released),
 * `KEYS[2]` the list of those who wait, first come first, and `KEYS[3]` the hash of
 * what they wait with: `<deadline, Unix ms> <ttl> <channel>`.
 *
 * Owners and waiters are known by the id of their request. Time is that of Redis.
 */
import * as RedisScript from "./RedisScript.ts"

/** How long the last fence of a key is remembered, should the clock of Redis be set back. */
const fenceMemoryMillis = 60 * 60_000

/**
 * A waiter that has not asked for this long is passed over. Whoever waits asks again
 * every few seconds.
 */
const waiterMillis = 10_000

const prelude = `
local time = redis.call('time')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)
local last, ends, owner = 0, 0, ''
local text = redis.call('get', KEYS[1])
if text then
  last, ends, owner = string.match(text, '^(%d+) (%d+) (.*)$')
  last, ends = tonumber(last), tonumber(ends)
end
local function int(n) return string.format('%.0f', n) end
local function held() return owner ~= '' and ends > now end
local function put(fence, till, who)
  redis.call('set', KEYS[1], int(fence) .. ' ' .. int(till) .. ' ' .. who, 'px', int(math.max(till - now, 0) + ${fenceMemoryMillis}))
end
-- More than every fence before: by the clock, also after a flush.
local function nextFence() return math.max(last + 1, micros) end

-- Grants the lock to the first waiter that is alive, and tells it. On one server, one without
-- a subscription has lost its process. Returns the fence when that waiter is the one who asks.
local function passOn(asking, isCluster)
  while true do
    local id = redis.call('lpop', KEYS[2])
    if not id then return nil end
    local waiter = redis.call('hget', KEYS[3], id)
    if waiter then
      redis.call('hdel', KEYS[3], id)
      local deadline, ttl, channel = string.match(waiter, '^(%d+) (%d+) (.*)$')
      if tonumber(deadline) > now then
        local fence = nextFence()
        if id == asking then
          put(fence, now + ttl, id)
          return fence, true
        end
        if redis.call('publish', channel, id .. ' ' .. int(fence)) > 0 or isCluster == '1' then
          put(fence, now + ttl, id)
          return fence, false
        end
      end
    end
  end
end
`

/**
 * ARGV: id, ttl (ms), whether this is a Redis Cluster (`1`), channel.
 * Returns `{1, fence}`, or `{0, ms until the holder's lease ends}` for one who waits.
 * Asking again does no harm: a waiter keeps its place, a holder starts its ttl again.
 */
export const acquire = RedisScript.make(
  `${prelude}
local id, ttl = ARGV[1], tonumber(ARGV[2])
if held() and owner == id then
  put(last, now + ttl, id)
  return {1, int(last)}
end
local waiter = int(now + ${waiterMillis}) .. ' ' .. ARGV[2] .. ' ' .. ARGV[4]
local waits = redis.call('hexists', KEYS[3], id) == 1
if not held() then
  if not waits and redis.call('llen', KEYS[2]) == 0 then
    local fence = nextFence()
    put(fence, now + ttl, id)
    return {1, int(fence)}
  end
end
redis.call('hset', KEYS[3], id, waiter)
if not waits then redis.call('rpush', KEYS[2], id) end
redis.call('pexpire', KEYS[2], ${2 * waiterMillis})
redis.call('pexpire', KEYS[3], ${2 * waiterMillis})
if not held() then
  local fence, mine = passOn(id, ARGV[3])
  if mine then return {1, int(fence)} end
  return {0, int(ttl)}
end
return {0, int(ends - now)}`,
  { retry: true }
)

/** ARGV: id, ttl (ms), whether this is a Redis Cluster (`1`). Returns the fence, or `''`; never waits. */
export const tryAcquire = RedisScript.make(
  `${prelude}
if held() then
  if owner ~= ARGV[1] then return '' end
  put(last, now + ARGV[2], owner)
  return int(last)
end
if redis.call('llen', KEYS[2]) > 0 and passOn('', ARGV[3]) then return '' end
local fence = nextFence()
put(fence, now + ARGV[2], ARGV[1])
return int(fence)`,
  { retry: true }
)

/** ARGV: id, ttl (ms). Returns 1, or 0 when the grant is over. */
export const renew = RedisScript.make(
  `${prelude}
if not held() or owner ~= ARGV[1] then return 0 end
put(last, now + ARGV[2], owner)
return 1`,
  { retry: true }
)

/** ARGV: id, whether this is a Redis Cluster (`1`). Ends a grant, if it is still the last one, and passes the lock on. */
export const release = RedisScript.make(
  `${prelude}
if owner ~= ARGV[1] then return end
if redis.call('exists', KEYS[2]) == 1 and passOn('', ARGV[2]) then return end
put(last, 0, '')`,
  { retry: true }
)

/** ARGV: id, whether this is a Redis Cluster (`1`). Withdraws a request, granted meanwhile or not. */
export const withdraw = RedisScript.make(
  `${prelude}
if redis.call('hdel', KEYS[3], ARGV[1]) == 1 then redis.call('lrem', KEYS[2], 1, ARGV[1]) end
if owner ~= ARGV[1] then return end
if passOn('', ARGV[2]) then return end
put(last, 0, '')`,
  { retry: true }
)
