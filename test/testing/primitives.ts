/** Workloads that put the primitives through what a plugin does with them, and what is to hold. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import { Cache, EventQueue, Job, Lock, Plugin, PubSub, SyncMessage, Topic } from "../../src/index.ts"
import { Invariant } from "../../src/testing/index.ts"

/** What the instances share beside the primitives: counters, as a database would have them. */
export class Database extends Context.Service<
  Database,
  { readonly counters: Map<string, number>; readonly fences: Map<string, number>; readonly runs: Map<string, number> }
>()("test/Database") {
  static readonly layer = Layer.sync(Database, () => ({ counters: new Map(), fences: new Map(), runs: new Map() }))
}

const key = Effect.map(Random.nextIntBetween(0, 2), (n) => `k${n}`)
const briefly = Effect.flatMap(Random.nextIntBetween(0, 4_000), (millis) => Effect.sleep(millis))

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
  workload: { increment: { weight: 3, run: increment }, hold, glance },
  invariants: [Invariant.oneHolder, Invariant.fencesIncrease]
}

const Work = Job.make("work", Schema.Struct({ n: Schema.Int, fails: Schema.Int }), {
  maxRetries: 2,
  timeout: "5 seconds",
  keepId: "1 minute"
})
const Worker = Plugin.make("worker", {
  load: Effect.flatMap(Database, ({ runs }) =>
    EventQueue.subscribe(Work, {
      concurrency: 2,
      lease: "6 seconds",
      process: ({ fails }, { attempt, id }) =>
        Effect.gen(function* () {
          yield* briefly
          if (attempt <= fails) return yield* Effect.fail("not yet")
          runs.set(id, (runs.get(id) ?? 0) + 1)
        })
    })
  )
})

export const queues = {
  plugins: [Worker],
  shared: Database.layer,
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

export const syncs = {
  plugins: [Mirrored],
  services: Mirror.layer,
  shared: Database.layer,
  workload: {
    change: Effect.gen(function* () {
      const { counters } = yield* Database
      const name = yield* key
      const mirror = yield* Mirror
      const value = yield* Random.nextIntBetween(1, 1_000)
      counters.set(name, value)
      mirror.values = { ...mirror.values, [name]: value }
      yield* SyncMessage.publish(Changed, { key: name })
    })
  },
  invariants: [
    Invariant.eventually("every instance has what the database has", (cluster) =>
      Effect.gen(function* () {
        const { counters } = yield* Database
        for (let i = 0; i < cluster.size; i++) {
          const { values } = yield* cluster.on(i, Mirror)
          for (const [name, value] of counters) {
            if (values[name] !== value) throw new Error(`${i} has ${values[name]} as ${name}, which is ${value}`)
          }
        }
      })
    )
  ]
}
