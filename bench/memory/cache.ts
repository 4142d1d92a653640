import type { Contender, Workload } from "../bench.ts"

// 64 keys in turn; every value is about 150 bytes as JSON.
const keys = Array.from({ length: 64 }, (_, i) => `user:${i}`)
const values = keys.map((id, i) => ({
  id,
  name: "Ada Lovelace",
  email: "ada@analytical.example",
  role: "editor",
  logins: 1_000 + i,
  active: true,
  createdAt: "2026-01-01T00:00:00.000Z"
}))
const keyAt = (i: number) => keys[i & 63]!

const cohort = async () => {
  const Effect = await import("effect/Effect")
  const Schema = await import("effect/Schema")
  const { makeRuntime, timedOn } = await import("./cohort.ts")
  const { Cache } = await import("../../src/index.ts")
  const User = Schema.Struct({
    id: Schema.String,
    name: Schema.String,
    email: Schema.String,
    role: Schema.String,
    logins: Schema.Number,
    active: Schema.Boolean,
    createdAt: Schema.String
  })
  const runtime = makeRuntime()
  const cache = await runtime.runPromise(Cache.make("users", User, { ttl: "1 hour" }))
  for (const [i, key] of keys.entries()) await runtime.runPromise(cache.set(key, values[i]!))
  return { Effect, cache, time: timedOn(runtime) }
}

const map: Contender = {
  name: "awaited Map (raw limit)",
  setup: "`await map.get(key)`: no ttl, no copy, no codec",
  make: async () => {
    const { timed } = await import("../bench.ts")
    const map = new Map(keys.map((key, i) => [key, values[i]!]))
    let sum = 0
    return (n) =>
      timed(async () => {
        for (let i = 0; i < n; i++) sum += (await map.get(keyAt(i)))!.logins
        return sum
      })
  }
}

const cacheManager = async () => {
  const { createCache } = await import("cache-manager")
  const { timed } = await import("../bench.ts")
  const cache = createCache({ ttl: 3_600_000 })
  for (const [i, key] of keys.entries()) await cache.set(key, values[i]!)
  return { cache, timed }
}

/** A `Cache.make` with a lookup, everything in it already; `get` is its only way to read through. */
const effectCache: Contender = {
  name: "effect/Cache",
  setup: "Cache.make({ capacity, lookup, timeToLive }), filled; returns the same object to everybody",
  goal: 1,
  make: async () => {
    const Effect = await import("effect/Effect")
    const Cache = await import("effect/Cache")
    const { timed } = await import("../bench.ts")
    const cache = await Effect.runPromise(
      Cache.make({
        capacity: 1_024,
        timeToLive: "1 hour",
        lookup: (key: string) => Effect.succeed(values[keys.indexOf(key)]!)
      })
    )
    for (const key of keys) await Effect.runPromise(Cache.get(cache, key))
    let sum = 0
    return (n) =>
      timed(() =>
        Effect.runPromise(
          Effect.gen(function* () {
            for (let i = 0; i < n; i++) sum += (yield* Cache.get(cache, keyAt(i))).logins
            return sum
          })
        )
      )
  }
}

export const cacheGet: Workload = {
  name: "cache get, hit",
  batch: 20_000,
  contenders: [
    {
      name: "cohort",
      setup: "a named cache of a Schema.Struct with a ttl; every hit is a copy of the caller's own",
      make: async () => {
        const { cache, Effect, time } = await cohort()
        let sum = 0
        return (n) =>
          time(
            Effect.gen(function* () {
              for (let i = 0; i < n; i++) {
                const hit = yield* cache.get(keyAt(i))
                if (hit._tag === "Some") sum += hit.value.logins
              }
              return sum
            })
          )
      }
    },
    map,
    {
      name: "cache-manager",
      setup: "createCache() on its default memory store, with a ttl",
      goal: 1,
      make: async () => {
        const { cache, timed } = await cacheManager()
        let sum = 0
        return (n) =>
          timed(async () => {
            for (let i = 0; i < n; i++) sum += (await cache.get<(typeof values)[number]>(keyAt(i)))!.logins
            return sum
          })
      }
    },
    effectCache
  ]
}

export const cacheWrap: Workload = {
  name: "cache wrap, hit",
  batch: 20_000,
  contenders: [
    {
      name: "cohort",
      setup: "as above, through wrap with a load that is never run",
      make: async () => {
        const { cache, Effect, time } = await cohort()
        const load = Effect.die("a hit does not load")
        let sum = 0
        return (n) =>
          time(
            Effect.gen(function* () {
              for (let i = 0; i < n; i++) sum += (yield* cache.wrap(keyAt(i), load)).logins
              return sum
            })
          )
      }
    },
    map,
    {
      name: "cache-manager",
      setup: "wrap on the same cache",
      goal: 1,
      make: async () => {
        const { cache, timed } = await cacheManager()
        const load = async (): Promise<(typeof values)[number]> => {
          throw new Error("a hit does not load")
        }
        let sum = 0
        return (n) =>
          timed(async () => {
            for (let i = 0; i < n; i++) sum += (await cache.wrap(keyAt(i), load)).logins
            return sum
          })
      }
    },
    effectCache
  ]
}
