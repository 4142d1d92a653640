/** The raw limit: ioredis, with auto-pipelining where many are in flight, and without where one is. */
import { Redis } from "ioredis"

export { timedInFlight } from "../bench.ts"

export const connect = (options: { readonly autoPipelining: boolean }): Redis =>
  new Redis(process.env.REDIS_URL!, { enableAutoPipelining: options.autoPipelining })

/** Deletes a lock whose token is still the caller's. */
export const unlock = `if redis.call("get", KEYS[1]) == ARGV[1] then return redis.call("del", KEYS[1]) end return 0`

/** The same, and tells those who wait. */
export const unlockAndTell = `if redis.call("get", KEYS[1]) == ARGV[1] then
  redis.call("del", KEYS[1])
  redis.call("publish", ARGV[2], "")
end`
