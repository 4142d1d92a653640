/** Workloads that put the primitives through what a plugin does with them, and what is to hold. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import {
  Cache,
  CacheStore,
  EventQueue,
  Job,
  Lock,
  Membership,
  Plugin,
  PubSub,
  Singleton,
  SyncMessage,
  Topic
} from "../../src/index.ts"
import { Backend, Invariant } from "../../src/testing/index.ts"

/** What the instances share beside the primitives: counters, as a database would have them. */
export class Database extends Context.Service<
  Database,
  { readonly counters: Map<string, number>; readonly fences: Map<string, number> }
>()("test/Database") {
  static readonly layer = Layer.sync(Database, () => ({ counters: new Map(), fences: new Map() }))
}

/** The memory backend with one of its stores changed for every instance. */
export const changed = <I, S>(tag: { readonly key: string } & Effect.Effect<S, never, I>, change: (store: S) => S) =>
  Effect.map(
    Backend.memory,
    (backend): Backend.Backend => ({
      ...backend,
      layer: Layer.merge(
        backend.layer,
        Layer.effect(tag as never, Effect.map(tag, change) as never).pipe(Layer.provide(backend.layer)) as never
      ) as Backend.Backend["layer"]
    })
  )

const key = Effect.map(Random.nextIntBetween(0, 2), (n) => `k${n}`)
const longest = 4_000
const briefly = Effect.flatMap(Random.nextIntBetween(0, longest), (millis) => Effect.sleep(millis))

/** Reads, waits, writes: two at a time lose a count. Writes of a holder that was overtaken are refused by its fence. */
const increment = Effect.gen(function* () {
  const { counters, fences } = yield* Database
  const name = yield* key
  yield* Lock.runExclusive(
    name,
    (lease) =>
      Effect.gen(function* () {
        const fence = Math.max(fences.get(name) ?? 0, lease.fence)
        fences.set(name, fence)
        const before = counters.get(name) ?? 0
        yield* briefly
        if (fences.get(name) !== lease.fence) return yield* Effect.fail("overtaken")
        const now = counters.get(name) ?? 0
        if (now !== before) throw new Error(`${name} went from ${before} to ${now} under the lock`)
        counters.set(name, before + 1)
      }),
    { ttl: "3 seconds" }
  )
})
/** A lease that nobody renews: extended by hand, or lost. */
const extend = Effect.scoped(
  Effect.gen(function* () {
    const lease = yield* Lock.acquire(yield* key, { ttl: "1 second", renew: false })
    yield* Effect.raceFirst(Effect.andThen(Effect.delay(lease.extend("3 seconds"), "500 millis"), briefly), lease.lost)
  })
)
/** Waits with work inside work, and gives up now and then. */
const nested = Effect.timeoutOption(
  Lock.runExclusive("k1", Effect.andThen(briefly, Lock.runExclusive("k2", briefly)), { ttl: "2 seconds" }),
  "6 seconds"
)
const hold = Effect.scoped(
  Effect.andThen(
    Effect.flatMap(key, (key) => Lock.acquire(key, { ttl: "5 seconds" })),
    briefly
  )
)
const glance = Effect.scoped(
  Effect.flatMap(key, (key) => Lock.tryAcquire(key, { timeout: "2 seconds", ttl: "1 second" }))
)

export const locks = {
  plugins: [],
  shared: Database.layer,
  workload: { increment: { weight: 3, run: increment }, hold, glance, extend, nested },
  invariants: [Invariant.oneHolder, Invariant.fencesIncrease]
}

const Work = Job.make("work", Schema.Struct({ n: Schema.Int, fails: Schema.Int }), {
  maxRetries: 2,
  timeout: "5 seconds",
  keepId: "1 minute"
})
const concurrency = 2
const Worker = Plugin.make("worker", {
  load: Effect.gen(function* () {
    let running = 0
    yield* EventQueue.subscribe(Work, {
      concurrency,
      lease: "6 seconds",
      idle: Effect.map(Random.next, (x) => x < 0.8),
      process: ({ fails, n }, { attempt }) =>
        Effect.gen(function* () {
          if (++running > concurrency) throw new Error(`${running} run at a time`)
          // Up to 7 seconds: some are too long for the timeout.
          yield* Effect.sleep(yield* Random.nextIntBetween(0, n === 9 ? 7_000 : 3_000))
          if (n === 8 && (yield* Random.next) < 0.5) return yield* Job.snooze("2 seconds")
          if (attempt <= fails) return yield* Effect.fail("not yet")
        }).pipe(Effect.ensuring(Effect.sync(() => running--)))
    })
  })
})

export const queues = {
  plugins: [Worker],
  workload: {
    publish: {
      weight: 4,
      run: Effect.gen(function* () {
        const fails = (yield* Random.nextIntBetween(0, 6)) - 3
        yield* EventQueue.publish(Work, { n: yield* Random.nextIntBetween(0, 9), fails })
      })
    },
    publishOnce: Effect.flatMap(Random.nextIntBetween(0, 5), (n) =>
      EventQueue.publish(Work, { n, fails: 0 }, { id: `id${n}`, delay: n * 1_000 })
    ),
    redrive: EventQueue.redrive(Work, "all"),
    discard: Effect.flatMap(EventQueue.deadLetters(Work), ([first]) =>
      first === undefined ? Effect.void : EventQueue.discard(Work, [first.id])
    )
  },
  invariants: [
    Invariant.noJobLost,
    Invariant.noJobDoneTwice,
    Invariant.eventually("every job is done or dead", (cluster) =>
      Effect.map(cluster.jobs(Work), (jobs) => {
        const open = jobs.filter(({ state }) => state !== "dead")
        if (open.length > 0) throw new Error(`${open.length} are not: ${open.map(({ id, state }) => `${id} ${state}`)}`)
      })
    ),
    Invariant.always("no handler dies of too many beside it", (cluster) =>
      Effect.map(cluster.jobs(Work), (jobs) => {
        const wrong = jobs.find(({ lastError }) => lastError?.includes("run at a time"))
        if (wrong !== undefined) throw new Error(wrong.lastError)
      })
    )
  ]
}

/** Values carry the version that the database had; a cache may not go back behind what a completed `del` has seen. */
const Versions = Cache.make("versions", Schema.Int, { ttl: "20 seconds" })
const change = Effect.gen(function* () {
  const { counters, fences } = yield* Database
  const name = yield* key
  const version = (counters.get(name) ?? 0) + 1
  counters.set(name, version)
  const versions = yield* Versions
  yield* versions.del(name)
  // From here on nobody may read an older one.
  fences.set(name, Math.max(version, fences.get(name) ?? 0))
})
const wrapped = (options: Cache.WrapOptions) =>
  Effect.gen(function* () {
    const { counters } = yield* Database
    const name = yield* key
    const versions = yield* Versions
    const load = Effect.suspend(() => Effect.as(briefly, counters.get(name) ?? 0))
    yield* versions.wrap(name, load, options)
  })
const get = Effect.gen(function* () {
  const { fences } = yield* Database
  const name = yield* key
  const least = fences.get(name) ?? 0
  const found = yield* Effect.flatMap(Versions, (versions) => versions.get(name))
  if (Option.isSome(found) && found.value < least) {
    throw new Error(`${name} is read as ${found.value} after ${least} was told everywhere`)
  }
})

export const caches = {
  plugins: [],
  shared: Database.layer,
  workload: {
    change,
    get,
    wrap: { weight: 2, run: wrapped({}) },
    wrapExclusively: wrapped({ exclusive: true }),
    reset: Effect.flatMap(Versions, (versions) => versions.reset)
  },
  invariants: [
    Invariant.oneHolder,
    Invariant.always("no cached value is older than what was told everywhere", (cluster) =>
      Effect.gen(function* () {
        const { fences } = yield* Database
        for (const { key, value } of yield* cluster.entries("versions")) {
          const told = fences.get(key) ?? 0
          if ((value as number) < told) throw new Error(`${key} is ${value} after ${told} was told`)
        }
      })
    )
  ]
}

/** Kept near: may be behind for as long as the near copies live, and no longer. */
const nearTtl = 5_000
const Near = Cache.make("near", Schema.Int, { near: { ttl: nearTtl }, ttl: "1 minute" })
/** When each version was told everywhere. */
class Told extends Context.Service<Told, Map<string, Array<{ readonly version: number; readonly at: number }>>>()(
  "test/Told"
) {
  static readonly layer = Layer.sync(Told, () => new Map())
}
const millis = Effect.clockWith((clock) => Effect.sync(() => Number(clock.monotonicTimeNanosUnsafe()) / 1e6))

export const nearCaches = {
  plugins: [],
  shared: Layer.merge(Database.layer, Told.layer),
  workload: {
    change: Effect.gen(function* () {
      const { counters } = yield* Database
      const told = yield* Told
      const name = yield* key
      const version = (counters.get(name) ?? 0) + 1
      counters.set(name, version)
      yield* Effect.flatMap(Near, (near) => near.del(name))
      told.set(name, [...(told.get(name) ?? []), { version, at: yield* millis }])
    }),
    read: {
      weight: 4,
      run: Effect.gen(function* () {
        const { counters } = yield* Database
        const told = yield* Told
        const name = yield* key
        const began = yield* millis
        const load = Effect.suspend(() => Effect.as(briefly, counters.get(name) ?? 0))
        const version = yield* Effect.flatMap(Near, (near) => near.wrap(name, load))
        // Whoever waits for a load gets what was there when it began.
        const least = (told.get(name) ?? []).findLast(({ at }) => at < began - nearTtl - longest)?.version ?? 0
        if (version < least) throw new Error(`${name} is read as ${version}, long after ${least} was told`)
      })
    }
  },
  // In memory nothing is nearer than the store.
  // A load that stood still with its instance began long ago, and its readers get what was there then.
  faults: ["crash", "stop", "partition", "refusal", "delay"],
  backend: changed(CacheStore.CacheStore, (store) => ({ ...store, local: false })),
  invariants: []
} as const

const News = Topic.make("news", Schema.Struct({ n: Schema.Int }))
const Listener = Plugin.make("listener", { load: PubSub.subscribe(News, () => briefly) })

export const broadcasts = {
  plugins: [Listener],
  workload: {
    publish: Effect.flatMap(Random.nextIntBetween(0, 99), (n) => PubSub.publish(News, { n })),
    publishToAll: Effect.flatMap(Random.nextIntBetween(0, 99), (n) => PubSub.publish(News, { n }, { skipSelf: false }))
  },
  invariants: [Invariant.messagesInOrder]
}

/** State in the memory of every instance, that a sync message keeps equal to the database. */
class Mirror extends Context.Service<Mirror, { values: Record<string, number> }>()("test/Mirror") {
  static readonly layer = Layer.effect(
    Mirror,
    Effect.map(Database, ({ counters }) => ({ values: Object.fromEntries(counters) }))
  )
}
const Changed = SyncMessage.make("mirror", Schema.Struct({ key: Schema.String }))
const Members = Membership.layer
const Tidy = Plugin.make("tidy", { load: Singleton.make("tidy", Effect.forever(Effect.sleep("2 seconds"))) })

/** Who there is, and who does what only one is to do. */
export const members = {
  plugins: [Tidy],
  services: Members,
  workload: { look: Membership.Membership.use(({ members }) => members) },
  invariants: [
    Invariant.oneHolder,
    Invariant.eventually("everybody knows everybody, and nobody else", (cluster) =>
      Effect.gen(function* () {
        const ids = Array.from({ length: cluster.size }, (_, i) => cluster.id(i)).sort()
        for (let i = 0; i < cluster.size; i++) {
          const known = yield* cluster.on(
            i,
            Membership.Membership.use(({ members }) => members)
          )
          const names = known.map(({ id }) => id).sort()
          if (names.join() !== ids.join()) throw new Error(`${i} knows ${names}; there are ${ids}`)
        }
      })
    ),
    Invariant.eventually("somebody tidies", (cluster) =>
      Effect.map(cluster.locks, (locks) => {
        if (locks.length !== 1) throw new Error(JSON.stringify(locks))
      })
    )
  ]
}

const Mirrored = Plugin.make("mirrored", {
  sync: {
    message: Changed,
    handle: ({ key }) =>
      Effect.gen(function* () {
        const { counters } = yield* Database
        const mirror = yield* Mirror
        mirror.values = { ...mirror.values, [key]: counters.get(key) ?? 0 }
      }),
    resync: Effect.gen(function* () {
      const { counters } = yield* Database
      const mirror = yield* Mirror
      yield* Effect.sleep("200 millis")
      mirror.values = Object.fromEntries(counters)
    })
  }
})

/** Without an outbox, what a sender has not told before it dies is told by nobody: only what was is held to. */
class Untold extends Context.Service<Untold, Map<string, { readonly at: number }>>()("test/Untold") {
  static readonly layer = Layer.sync(Untold, () => new Map())
}

export const syncs = {
  plugins: [Mirrored],
  services: Mirror.layer,
  shared: Layer.merge(Database.layer, Untold.layer),
  workload: {
    change: Effect.gen(function* () {
      const { counters } = yield* Database
      const untold = yield* Untold
      const name = yield* key
      const mirror = yield* Mirror
      const value = yield* Random.nextIntBetween(1, 1_000)
      const change = { at: yield* millis }
      untold.set(name, change)
      counters.set(name, value)
      mirror.values = { ...mirror.values, [name]: value }
      // A sender that lives tells what got lost as well, within 10 seconds.
      const told = Effect.sync(() => untold.get(name) === change && untold.delete(name))
      yield* Effect.forkDetach(Effect.delay(told, 30_000))
      yield* SyncMessage.publish(Changed, { key: name })
    })
  },
  invariants: [
    Invariant.eventually("every instance has what the database has", (cluster) =>
      Effect.gen(function* () {
        const { counters } = yield* Database
        const untold = yield* Untold
        const now = yield* millis
        if ([...untold.values()].some(({ at }) => at > now - 31_000)) throw new Error("it is too early to tell")
        for (let i = 0; i < cluster.size; i++) {
          const { values } = yield* cluster.on(i, Mirror)
          for (const [name, value] of counters) {
            if (untold.has(name)) continue
            if (values[name] !== value) throw new Error(`${i} has ${values[name]} as ${name}, which is ${value}`)
          }
        }
      })
    )
  ]
}
