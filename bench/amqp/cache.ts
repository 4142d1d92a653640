import type { Effect as Program } from "effect/Effect"
import type * as Caches from "../../src/services/Cache.ts"
import { bound, type Contender, type Workload } from "../bench.ts"

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
const valueAt = (i: number) => values[i & 63]!
const many = 64

const onRabbit = async () => (await import("./cohort.ts")).makeRuntime({ app: `bench-${process.pid}` })
const onMemory = async () => (await import("../memory/cohort.ts")).makeRuntime()

const cohort = async (make: typeof onRabbit | typeof onMemory = onRabbit) => {
  const Effect = await import("effect/Effect")
  const Schema = await import("effect/Schema")
  const { inFlight } = await import("../inFlight.ts")
  const { timed } = await import("../bench.ts")
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
  const runtime = await make()
  const run = <A>(effect: Program<A, unknown, Caches.Cache>) => runtime.runPromise(effect)
  const cache = await run(Cache.make("users", User, { ttl: "1 hour" }))
  for (const [i, key] of keys.entries()) await run(cache.set(key, values[i]!))
  return { cache, Effect, inFlight, run, time: (effect: Program<unknown, unknown>) => timed(() => run(effect)) }
}

// --- get ---

const get = (name: string, make: typeof onRabbit | typeof onMemory, goal?: number): Contender => ({
  name,
  setup: "get on a named cache of a Schema.Struct with a ttl, one fiber",
  ...(goal === undefined ? {} : { goal }),
  make: async () => {
    const { cache, Effect, time } = await cohort(make)
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
})

export const cacheGet: Workload = {
  name: "cache get",
  batch: 20_000,
  contenders: [get("cohort", onRabbit), get("memory layer", onMemory, 1 / 1.5)]
}

// --- set ---

/** Appends to a stream, and is done when it has read it again. */
const raw = async () => {
  const { connect } = await import("./raw.ts")
  const { timedInFlight } = await import("../bench.ts")
  const publisher = await (await connect()).createConfirmChannel()
  const consumer = await (await connect()).createChannel()
  const stream = `raw-stream-${process.pid}`
  await consumer.assertQueue(stream, { durable: true, arguments: { "x-queue-type": "stream" } })
  await consumer.prefetch(1_000)
  const waiting = new Map<number, () => void>()
  let count = 0
  await consumer.consume(
    stream,
    (message) => {
      consumer.ack(message!)
      const { id } = JSON.parse(message!.content.toString()) as { readonly id: number }
      waiting.get(id)?.()
      waiting.delete(id)
    },
    { arguments: { "x-stream-offset": "next" } }
  )
  const set = (i: number) =>
    new Promise<void>((resolve) => {
      const id = count++
      waiting.set(id, resolve)
      publisher.sendToQueue(stream, Buffer.from(JSON.stringify({ id, value: valueAt(i) })), { persistent: true })
    })
  return { set, timedInFlight }
}

const rawSet = "append and read (raw)"
const rawSetup = "amqplib: a record appended to a stream on a confirm channel, until it is read again"

export const cacheSetOne: Workload = {
  name: "cache set, p50",
  batch: 200,
  contenders: [
    {
      name: "cohort",
      setup: "set, confirmed and applied, one at a time",
      make: async () => {
        const { medianOfEach } = await import("../bench.ts")
        const { cache, run } = await cohort()
        return (n) => medianOfEach(n, (i) => run(cache.set(keyAt(i), valueAt(i))))
      }
    },
    bound("1 ms", 1e6),
    {
      name: rawSet,
      setup: rawSetup,
      make: async () => {
        const { medianOfEach } = await import("../bench.ts")
        const { set } = await raw()
        return (n) => medianOfEach(n, set)
      }
    }
  ]
}

export const cacheSet: Workload = {
  name: `cache set, ${many} in flight`,
  batch: 6_400,
  contenders: [
    {
      name: "cohort",
      setup: `set on a named cache of a Schema.Struct with a ttl, ${many} fibers in a loop`,
      make: async () => {
        const { cache, inFlight, time } = await cohort()
        return (n) => time(inFlight(n, many, (i) => cache.set(keyAt(i), valueAt(i))))
      }
    },
    {
      name: rawSet,
      setup: `${rawSetup}; ${many} async functions`,
      make: async () => {
        const { set, timedInFlight } = await raw()
        return (n) => timedInFlight(n, many, set)
      }
    }
  ]
}
