/** What the broadcast benchmarks share. */
import type * as ManagedRuntime from "effect/ManagedRuntime"
import type { PubSub } from "../src/index.ts"
import type { Contender } from "./bench.ts"
import { pause, payload } from "./queue.ts"

export const subscribers = 3
export const many = 64

/** Publishes, and calls back for what each subscriber gets. */
export interface Fanout {
  readonly publish: (n: number, inFlight: number) => Promise<unknown>
  onMessage: () => void
}

/** An instance of ours for each subscriber, and one that publishes. */
export const cohort = async (
  makeRuntime: (options: { readonly app: string }) => ManagedRuntime.ManagedRuntime<PubSub.PubSub, unknown>,
  tracing: boolean
): Promise<Fanout> => {
  const Effect = await import("effect/Effect")
  const Schema = await import("effect/Schema")
  const { inFlight } = await import("./inFlight.ts")
  const { PubSub, Topic } = await import("../src/index.ts")
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

export const rate = (name: string, setup: string, make: () => Promise<Fanout>, goal?: number): Contender => ({
  name,
  setup: `${setup}; ${many} publishes in flight, until all three have all`,
  ...(goal === undefined ? {} : { goal }),
  make: async () => {
    const fanout = await make()
    const { timed } = await import("./bench.ts")
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

export const latency = (name: string, setup: string, make: () => Promise<Fanout>, goal?: number): Contender => ({
  name,
  setup: `${setup}; one at a time, until the third has it`,
  ...(goal === undefined ? {} : { goal }),
  make: async () => {
    const fanout = await make()
    const { median } = await import("./bench.ts")
    const medianOf = async (n: number, millis: number) => {
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
        if (millis > 0) await pause(millis)
      }
      return median(times) * n
    }
    // As `idle` of the queues: compiled first, and then with pauses.
    await medianOf(5_000, 0)
    return (n) => medianOf(n, 1)
  }
})
