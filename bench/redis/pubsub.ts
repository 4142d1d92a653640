import type { Contender, Workload } from "../bench.ts"

/** About 150 bytes as JSON. */
const payload = {
  id: "5b1f0f5e-2f0c-4d52-9a0f-7f2d7d3d7c11",
  name: "Ada Lovelace",
  email: "ada@analytical.example",
  rows: 250,
  createdAt: "2026-01-01T00:00:00.000Z"
}
const subscribers = 3
const many = 64

/** Publishes, and calls back for what each subscriber gets. */
interface Fanout {
  readonly publish: (n: number, inFlight: number) => Promise<unknown>
  onMessage: () => void
}

const cohort = async (tracing: boolean): Promise<Fanout> => {
  const Effect = await import("effect/Effect")
  const Schema = await import("effect/Schema")
  const { inFlight, makeRuntime } = await import("./cohort.ts")
  const { PubSub, Topic } = await import("../../src/index.ts")
  const News = Topic.make(
    "news",
    Schema.Struct({
      id: Schema.String,
      name: Schema.String,
      email: Schema.String,
      rows: Schema.Number,
      createdAt: Schema.String
    })
  )
  const app = `bench-${process.pid}`
  const fanout: Fanout = {
    publish: (n, fibers) =>
      publisher.runPromise(
        Effect.withTracerEnabled(
          inFlight(n, fibers, () => PubSub.publish(News, payload)),
          tracing
        )
      ),
    onMessage: () => {}
  }
  for (let i = 0; i < subscribers; i++) {
    const process = (message: typeof payload) =>
      Effect.sync(() => {
        if (message.rows === payload.rows) fanout.onMessage()
      })
    const runtime = makeRuntime({ app })
    await new Promise<void>((ready) =>
      runtime.runFork(
        Effect.scoped(
          PubSub.subscribe(News, process).pipe(
            Effect.andThen(Effect.sync(ready)),
            Effect.andThen(Effect.never),
            Effect.withTracerEnabled(tracing)
          )
        )
      )
    )
  }
  const publisher = makeRuntime({ app })
  return fanout
}

const raw = async (autoPipelining: boolean): Promise<Fanout> => {
  const { connect, timedInFlight } = await import("./raw.ts")
  const publisher = connect({ autoPipelining })
  const channel = `raw-${process.pid}`
  const fanout: Fanout = {
    publish: (n, inFlight) => timedInFlight(n, inFlight, () => publisher.publish(channel, JSON.stringify(payload))),
    onMessage: () => {}
  }
  for (let i = 0; i < subscribers; i++) {
    const subscriber = connect({ autoPipelining: false })
    await subscriber.subscribe(channel)
    subscriber.on("message", (_, text) => {
      if ((JSON.parse(text) as typeof payload).rows === payload.rows) fanout.onMessage()
    })
  }
  return fanout
}

const rate = (name: string, setup: string, make: () => Promise<Fanout>, goal?: number): Contender => ({
  name,
  setup: `${setup}; ${many} publishes in flight, until all three have all`,
  ...(goal === undefined ? {} : { goal }),
  make: async () => {
    const fanout = await make()
    const { timed } = await import("../bench.ts")
    return (n) =>
      timed(async () => {
        let left = n * subscribers
        const all = new Promise<void>((resolve) => {
          fanout.onMessage = () => {
            if (--left === 0) resolve()
          }
        })
        await fanout.publish(n, many)
        await all
      })
  }
})

const latency = (name: string, setup: string, make: () => Promise<Fanout>, goal?: number): Contender => ({
  name,
  setup: `${setup}; one at a time, until the third has it`,
  ...(goal === undefined ? {} : { goal }),
  make: async () => {
    const fanout = await make()
    const { median } = await import("../bench.ts")
    return async (n) => {
      const times: Array<number> = []
      for (let i = 0; i < n; i++) {
        let left = subscribers
        const all = new Promise<bigint>((resolve) => {
          fanout.onMessage = () => {
            if (--left === 0) resolve(process.hrtime.bigint())
          }
        })
        const start = process.hrtime.bigint()
        const published = fanout.publish(1, 1)
        times.push(Number((await all) - start))
        await published
        await new Promise((resolve) => setTimeout(resolve, 1))
      }
      return median(times) * n
    }
  }
})

const ours = "a Topic of a Schema.Struct, an instance for each subscriber"
const theirs = "ioredis, a connection for each subscriber, JSON.parse"

export const fanoutRate: Workload = {
  name: "fan-out to 3",
  batch: 6_400,
  contenders: [rate("cohort", ours, () => cohort(true)), rate("PUBLISH (raw)", theirs, () => raw(true), 0.6)]
}

export const fanoutRateUntraced: Workload = {
  name: "fan-out to 3, tracing off",
  batch: 6_400,
  contenders: [
    rate("cohort", `${ours}; Effect.withTracerEnabled(false)`, () => cohort(false)),
    rate("PUBLISH (raw)", theirs, () => raw(true), 0.8)
  ]
}

export const fanoutLatency: Workload = {
  name: "fan-out to 3, p50",
  batch: 100,
  contenders: [
    latency("cohort", ours, () => cohort(true)),
    latency("PUBLISH (raw)", theirs, () => raw(false), 1 / 1.15)
  ]
}
