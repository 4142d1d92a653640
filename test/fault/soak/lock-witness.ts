/**
 * What a lock protects in the soak: a resource in Redis that knows who may write
 * to it, and writes down what must not be.
 *
 * It is told with each call until when the caller's lease is good, by the caller's
 * own reckoning. All processes and Redis run on one machine: their clocks are one.
 *
 * - Two leases that are both good are a violation, whichever comes second.
 * - A caller whose lease is over may still come: it is refused if there is a newer
 *   fence, and counted.
 */
import type { Redis } from "ioredis"

const script = `
local op, fence, good, waited = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('time')
local now = time[1] * 1000 + time[2] / 1000
local newest = tonumber(redis.call('hget', KEYS[1], 'fence') or '0')
local function count(name) redis.call('hincrby', 'soak:counts', name, 1) end
local function longest(name, millis)
  if millis > tonumber(redis.call('hget', 'soak:counts', name) or '0') then
    redis.call('hset', 'soak:counts', name, string.format('%.0f', millis))
  end
end
local function violation(text)
  redis.call('rpush', 'soak:violations', KEYS[1] .. ': ' .. text)
end

if fence < newest then
  if good > now then
    violation(string.format('%s with fence %.0f, good for %.3f ms, after fence %.0f', op, fence, good - now, newest))
  end
  if op ~= 'leave' then count('refused') end
  return 0
end
if fence > newest then
  if op ~= 'enter' then violation(op .. ' without enter') end
  local inside = tonumber(redis.call('hget', KEYS[1], 'good') or '0')
  if inside > now then
    violation(string.format('fence %.0f while fence %.0f is good for %.3f ms', fence, newest, inside - now))
  elseif inside > 0 then
    count('taken over')
  end
  local entered = tonumber(redis.call('hget', KEYS[1], 'entered') or now)
  longest('longest gap, ms', now - entered)
  longest('longest wait, ms', waited)
  longest('newest fence', fence)
  count('grants')
end
redis.call('hset', KEYS[1], 'fence', ARGV[2], 'good', op == 'leave' and '0' or ARGV[3])
if op == 'enter' then redis.call('hset', KEYS[1], 'entered', string.format('%.3f', now)) end
if op == 'write' then count('writes') end
return 1`

/** `good`: Unix milliseconds. `false`: refused. */
export const tell = async (
  redis: Redis,
  op: "enter" | "write" | "leave",
  key: string,
  fence: number,
  good: number,
  waited: number
): Promise<boolean> => (await redis.eval(script, 1, `soak:${key}`, op, fence, good, Math.round(waited))) === 1
