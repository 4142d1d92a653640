/** The raw limit: ioredis, with auto-pipelining where many are in flight, and without where one is. */
import { Redis } from "ioredis"
import { timed } from "../bench.ts"

export const connect = (options: { readonly autoPipelining: boolean }): Redis =>
  new Redis(process.env.REDIS_URL!, { enableAutoPipelining: options.autoPipelining })

/** Times `n` operations of async functions, each in a loop. */
export const timedInFlight = (
  n: number,
  inFlight: number,
  operation: (i: number) => Promise<unknown>
): Promise<number> =>
  timed(() =>
    Promise.all(
      Array.from({ length: inFlight }, async (_, worker) => {
        for (let i = worker; i < n; i += inFlight) await operation(i)
      })
    )
  )

/** Deletes a lock whose token is still the caller's. */
export const unlock = `if redis.call("get", KEYS[1]) == ARGV[1] then return redis.call("del", KEYS[1]) end return 0`

/** The same, and tells those who wait. */
export const unlockAndTell = `if redis.call("get", KEYS[1]) == ARGV[1] then
  redis.call("del", KEYS[1])
  redis.call("publish", ARGV[2], "")
end`
