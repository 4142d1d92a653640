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
type User = (typeof values)[number]
const keyAt = (i: number) => keys[i & 63]!
const valueAt = (i: number) => values[i & 63]!
const hour = 3_600_000

const many = 64

// --- cohort ---

const cohort = async (near = false) => {
  const Effect = await import("effect/Effect")
  const Schema = await import("effect/Schema")
  const { inFlight, makeRuntime, timedOn } = await import("./cohort.ts")
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
  const options = { ttl: hour, near: near && { ttl: hour } } as const
  const cache = await runtime.runPromise(Cache.make("users", User, options))
  for (const [i, key] of keys.entries()) await runtime.runPromise(cache.set(key, values[i]!))
  return { Effect, inFlight, cache, runtime, time: timedOn(runtime) }
}

const cohortGet = (fibers: number, tracing: boolean): Contender => ({
  name: tracing ? "cohort" : "cohort, tracing off",
  setup: `get on a named cache of a Schema.Struct with a ttl, ${fibers} fibers in a loop${tracing ? "" : "; Effect.withTracerEnabled(false)"}`,
  make: async () => {
    const { cache, Effect, inFlight, time } = await cohort()
    let sum = 0
    const get = (i: number) =>
      Effect.map(cache.get(keyAt(i)), (hit) => {
        if (hit._tag === "Some") sum += hit.value.logins
      })
    return (n) => time(Effect.as(Effect.withTracerEnabled(inFlight(n, fibers, get), tracing), () => sum))
  }
})

// --- raw ---

const raw = async (autoPipelining: boolean) => {
  const { connect, timedInFlight } = await import("./raw.ts")
  const redis = connect({ autoPipelining })
  for (const [i, key] of keys.entries()) await redis.set(`raw:${key}`, JSON.stringify(values[i]), "PX", hour)
  return { redis, timedInFlight }
}

const rawGet = (inFlight: number, goal: number): Contender => ({
  name: "ioredis GET (raw)",
  setup: `JSON.parse(await redis.get(key)), ${inFlight} async functions${inFlight > 1 ? "; enableAutoPipelining" : ""}; no Schema`,
  goal,
  make: async () => {
    const { redis, timedInFlight } = await raw(inFlight > 1)
    let sum = 0
    return (n) =>
      timedInFlight(n, inFlight, async (i) => {
        sum += (JSON.parse((await redis.get(`raw:${keyAt(i)}`))!) as User).logins
        return sum
      })
  }
})

// --- peers ---

const cacheManager = async () => {
  const { createCache } = await import("cache-manager")
  const { createKeyv } = await import("@keyv/redis")
  const { timedInFlight } = await import("./raw.ts")
  const cache = createCache({ stores: [createKeyv(process.env.REDIS_URL)], ttl: hour })
  for (const [i, key] of keys.entries()) await cache.set(key, values[i]!)
  return { cache, timedInFlight }
}

const bento = async (layers: "redis" | "memory and redis") => {
  const { BentoCache, bentostore } = await import("bentocache")
  const { redisDriver } = await import("bentocache/drivers/redis")
  const { memoryDriver } = await import("bentocache/drivers/memory")
  const { timedInFlight } = await import("./raw.ts")
  const { hostname: host, port } = new URL(process.env.REDIS_URL!)
  const redis = redisDriver({ connection: { host, port: Number(port) } })
  const store = bentostore()
  const stores = {
    users:
      layers === "redis"
        ? store.useL2Layer(redis)
        : store.useL1Layer(memoryDriver({ maxItems: 10_000 })).useL2Layer(redis)
  }
  const cache = new BentoCache({ default: "users", ttl: hour, stores })
  for (const [i, key] of keys.entries()) await cache.set({ key, value: values[i]! })
  return { cache, timedInFlight }
}

const peersGet = (inFlight: number): ReadonlyArray<Contender> => [
  {
    name: "cache-manager",
    setup: "createCache with @keyv/redis, a ttl; node-redis pipelines by itself",
    make: async () => {
      const { cache, timedInFlight } = await cacheManager()
      let sum = 0
      return (n) =>
        timedInFlight(n, inFlight, async (i) => {
          sum += (await cache.get<User>(keyAt(i)))!.logins
          return sum
        })
    }
  },
  {
    name: "bentocache L2",
    setup: "BentoCache with the redis driver only",
    make: async () => {
      const { cache, timedInFlight } = await bento("redis")
      let sum = 0
      return (n) =>
        timedInFlight(n, inFlight, async (i) => {
          sum += (await cache.get<User>({ key: keyAt(i) }))!.logins
          return sum
        })
    }
  }
]

export const cacheGet: Workload = {
  name: `cache get, ${many} in flight`,
  batch: 12_800,
  contenders: [cohortGet(many, true), rawGet(many, 1), ...peersGet(many)]
}

export const cacheGetUntraced: Workload = {
  name: "  the same, tracing off",
  batch: 12_800,
  contenders: [cohortGet(many, false), rawGet(many, 1.15)]
}

export const cacheGetOne: Workload = {
  name: "cache get, 1 in flight",
  batch: 2_000,
  contenders: [cohortGet(1, true), rawGet(1, 0.95), ...peersGet(1)]
}

export const cacheWrap: Workload = {
  name: `cache wrap hit, ${many} in flight`,
  batch: 12_800,
  contenders: [
    {
      name: "cohort",
      setup: "wrap with a load that is never run, 64 fibers in a loop",
      make: async () => {
        const { cache, Effect, inFlight, time } = await cohort()
        const load = Effect.die("a hit does not load")
        let sum = 0
        const wrap = (i: number) =>
          Effect.map(cache.wrap(keyAt(i), load), ({ logins }) => {
            sum += logins
          })
        return (n) => time(Effect.as(inFlight(n, many, wrap), () => sum))
      }
    },
    rawGet(many, 1),
    {
      name: "cache-manager",
      setup: "wrap on createCache with @keyv/redis",
      make: async () => {
        const { cache, timedInFlight } = await cacheManager()
        const load = async (): Promise<User> => {
          throw new Error("a hit does not load")
        }
        let sum = 0
        return (n) =>
          timedInFlight(n, many, async (i) => {
            sum += (await cache.wrap(keyAt(i), load)).logins
            return sum
          })
      }
    },
    {
      name: "bentocache L2",
      setup: "getOrSet with the redis driver only",
      make: async () => {
        const { cache, timedInFlight } = await bento("redis")
        const factory = async (): Promise<User> => {
          throw new Error("a hit does not load")
        }
        let sum = 0
        return (n) =>
          timedInFlight(n, many, async (i) => {
            sum += (await cache.getOrSet({ key: keyAt(i), factory })).logins
            return sum
          })
      }
    }
  ]
}

export const cacheSet: Workload = {
  name: `cache set, ${many} in flight`,
  batch: 12_800,
  contenders: [
    {
      name: "cohort",
      setup: "set on a named cache of a Schema.Struct with a ttl, 64 fibers in a loop",
      make: async () => {
        const { cache, inFlight, time } = await cohort()
        return (n) => time(inFlight(n, many, (i) => cache.set(keyAt(i), valueAt(i))))
      }
    },
    {
      name: "ioredis SET PX (raw)",
      setup: "redis.set(key, JSON.stringify(value), 'PX', ttl), enableAutoPipelining; no Schema",
      goal: 0.8,
      make: async () => {
        const { redis, timedInFlight } = await raw(true)
        return (n) =>
          timedInFlight(n, many, (i) => redis.set(`raw:${keyAt(i)}`, JSON.stringify(valueAt(i)), "PX", hour))
      }
    },
    {
      name: "cache-manager",
      setup: "set on createCache with @keyv/redis",
      make: async () => {
        const { cache, timedInFlight } = await cacheManager()
        return (n) => timedInFlight(n, many, (i) => cache.set(keyAt(i), valueAt(i)))
      }
    },
    {
      name: "bentocache L2",
      setup: "set with the redis driver only",
      make: async () => {
        const { cache, timedInFlight } = await bento("redis")
        return (n) => timedInFlight(n, many, (i) => cache.set({ key: keyAt(i), value: valueAt(i) }))
      }
    }
  ]
}

export const cacheNear: Workload = {
  name: "near cache hit",
  batch: 20_000,
  contenders: [
    {
      name: "cohort",
      setup: "get on a near cache with a ttl, one fiber; every hit is a copy of the caller's own",
      make: async () => {
        const { cache, Effect, time } = await cohort(true)
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
    {
      name: "bentocache L1",
      setup: "the memory driver before the redis driver",
      goal: 1,
      make: async () => {
        const { cache, timedInFlight } = await bento("memory and redis")
        let sum = 0
        return (n) =>
          timedInFlight(n, 1, async (i) => {
            sum += (await cache.get<User>({ key: keyAt(i) }))!.logins
            return sum
          })
      }
    },
    {
      name: "effect PersistedCache",
      setup: "in memory before Persistence on memory; every hit is the same object",
      goal: 1,
      make: async () => {
        const Effect = await import("effect/Effect")
        const Exit = await import("effect/Exit")
        const Scope = await import("effect/Scope")
        const Schema = await import("effect/Schema")
        const { Persistable, PersistedCache, Persistence } = await import("effect/persistence")
        const { timed } = await import("../bench.ts")
        class GetUser extends Persistable.Class<{ payload: { id: string } }>()("GetUser", {
          primaryKey: ({ id }) => id,
          success: Schema.Any
        }) {}
        const requests = keys.map((id) => new GetUser({ id }))
        const cache = await Effect.runPromise(
          PersistedCache.make((request: GetUser) => Exit.succeed(values[keys.indexOf(request.id)]!), {
            storeId: "users",
            timeToLive: () => hour,
            inMemoryCapacity: 10_000,
            inMemoryTTL: () => hour
          }).pipe(
            Effect.provide(Persistence.layerMemory),
            Effect.provideService(Scope.Scope, await Effect.runPromise(Scope.make()))
          )
        )
        for (const request of requests) await Effect.runPromise(cache.get(request))
        let sum = 0
        return (n) =>
          timed(() =>
            Effect.runPromise(
              Effect.gen(function* () {
                for (let i = 0; i < n; i++) sum += ((yield* cache.get(requests[i & 63]!)) as User).logins
                return sum
              })
            )
          )
      }
    }
  ]
}
