import type { Contender, Workload } from "../bench.ts"
import type { Contest, Lockers } from "../contest.ts"

const ttl = 30_000

/** How each contender runs something under a lock. */
export const lockers: Lockers = {
  cohort: {
    setup: "Lock.runExclusive(key, Effect.void, { ttl })",
    make: async () => {
      const Effect = await import("effect/Effect")
      const { makeRuntime } = await import("./cohort.ts")
      const { Lock } = await import("../../src/index.ts")
      const runtime = makeRuntime()
      const one = (key: string, entered: () => void) => Lock.runExclusive(key, () => Effect.sync(entered), { ttl })
      const loops = (keys: ReadonlyArray<string>, entered: (loop: number) => boolean) =>
        Effect.forEach(
          keys,
          (key, loop) => {
            let going = true
            return Effect.whileLoop({
              while: () => going,
              body: () =>
                one(key, () => {
                  going = entered(loop)
                }),
              step: () => {}
            })
          },
          { concurrency: "unbounded", discard: true }
        )
      return (keys, entered) => runtime.runPromise(loops(keys, entered))
    }
  },
  "SET NX PX and a script (raw)": {
    setup: "SET key token NX PX, then EVALSHA of a delete that compares the token",
    make: async () => {
      const { connect, unlock } = await import("./raw.ts")
      return async (keys, entered) => {
        const redis = connect({ autoPipelining: keys.length > 1 })
        redis.defineCommand("unlock", { numberOfKeys: 1, lua: unlock })
        let tokens = 0
        await Promise.all(
          keys.map(async (key, loop) => {
            let going = true
            while (going) {
              const token = String(tokens++)
              await redis.set(key, token, "PX", ttl, "NX")
              going = entered(loop)
              await (redis as unknown as { unlock: (key: string, token: string) => Promise<number> }).unlock(key, token)
            }
          })
        )
        redis.disconnect()
      }
    }
  },
  "redis-semaphore": {
    setup: "new Mutex(redis, key), acquire and release, its refresh at its default",
    make: async () => {
      const { connect } = await import("./raw.ts")
      const { Mutex } = await import("redis-semaphore")
      return async (keys, entered) => {
        const redis = connect({ autoPipelining: false })
        await Promise.all(
          keys.map(async (key, loop) => {
            let going = true
            while (going) {
              const mutex = new Mutex(redis as never, key, { acquireTimeout: 60_000, retryInterval: 1 })
              await mutex.acquire()
              going = entered(loop)
              await mutex.release()
            }
          })
        )
        redis.disconnect()
      }
    }
  },
  redlock: {
    setup: "redlock 5 beta on one client, acquire and release",
    make: async () => {
      const { connect } = await import("./raw.ts")
      // @ts-expect-error its types are not among its exports
      const { default: Redlock } = await import("redlock")
      return async (keys, entered) => {
        const redis = connect({ autoPipelining: false })
        const redlock = new Redlock([redis as never], { retryCount: -1, retryDelay: 1, retryJitter: 1 })
        await Promise.all(
          keys.map(async (key, loop) => {
            let going = true
            while (going) {
              const lock = await redlock.acquire([key], ttl)
              going = entered(loop)
              await lock.release()
            }
          })
        )
        redis.disconnect()
      }
    }
  },
  "notify loop (raw)": {
    setup:
      "waiters first come first served inside a process; the first of each tries SET NX PX when a release is published",
    make: async () => {
      const { connect, unlockAndTell } = await import("./raw.ts")
      return async (keys, entered) => {
        const redis = connect({ autoPipelining: false })
        const subscriber = connect({ autoPipelining: false })
        redis.defineCommand("unlock", { numberOfKeys: 1, lua: unlockAndTell })
        const unlock = (redis as unknown as { unlock: (...args: Array<string>) => Promise<number> }).unlock.bind(redis)
        const key = keys[0]!
        let told: () => void = () => {}
        await subscriber.subscribe(`${key}:free`)
        subscriber.on("message", () => told())
        let last = Promise.resolve()
        let tokens = 0
        await Promise.all(
          keys.map(async (_, loop) => {
            let going = true
            while (going) {
              const before = last
              let done = () => {}
              last = new Promise((resolve) => {
                done = resolve
              })
              await before
              const token = `${process.pid}:${tokens++}`
              while (true) {
                const free = new Promise<void>((resolve) => {
                  told = resolve
                  setTimeout(resolve, 50)
                })
                if ((await redis.set(key, token, "PX", ttl, "NX")) === "OK") break
                await free
              }
              going = entered(loop)
              await unlock(key, token, `${key}:free`)
              done()
            }
          })
        )
        redis.disconnect()
        subscriber.disconnect()
      }
    }
  }
}

// --- without contention ---

const loops = (name: string, count: number, goal?: number): Contender => ({
  name,
  setup: `${lockers[name]!.setup}; ${count} in flight, a key each`,
  ...(goal === undefined ? {} : { goal }),
  make: async () => {
    const run = await lockers[name]!.make()
    const { timed } = await import("../bench.ts")
    const keys = Array.from({ length: count }, (_, i) => `lock-${name.replaceAll(" ", "-")}-${i}`)
    return (n) => {
      let left = n
      return timed(() => run(keys, () => --left >= count))
    }
  }
})

const uncontended = (count: number, goal: number): Workload => ({
  name: `lock, ${count} in flight`,
  batch: count === 1 ? 1_000 : 4_800,
  contenders: [
    loops("cohort", count),
    loops("SET NX PX and a script (raw)", count, goal),
    loops("redis-semaphore", count),
    loops("redlock", count)
  ]
})

export const lockOne = uncontended(1, 0.95)
export const lockMany = uncontended(16, 0.8)

// --- with contention ---

const contended = (name: string, measure: keyof Contest, goal?: number): Contender => ({
  name: measure === "perHandOver" ? name : `${name}, ${measure === "longest" ? "longest" : "median"}`,
  setup: `${lockers[name]!.setup}; 16 loops in each of two processes`,
  ...(goal === undefined ? {} : { goal }),
  make: async () => {
    const { contest } = await import("../contest.ts")
    return async (n) => (await contest("redis", name, n))[measure] * n
  }
})

export const lockContended: Workload = {
  name: "lock hand-over, 2 × 16",
  batch: 4_000,
  contenders: [
    contended("cohort", "perHandOver"),
    contended("notify loop (raw)", "perHandOver", 0.45),
    contended("redis-semaphore", "perHandOver"),
    contended("redlock", "perHandOver")
  ]
}

/** The goal: the median wait is at least a third of the longest. */
export const lockWaits: Workload = {
  name: "lock waits, 2 × 16",
  batch: 4_000,
  contenders: [
    contended("cohort", "longest"),
    contended("cohort", "median", 1 / 3),
    contended("notify loop (raw)", "longest"),
    contended("notify loop (raw)", "median"),
    contended("redis-semaphore", "longest"),
    contended("redis-semaphore", "median")
  ]
}
