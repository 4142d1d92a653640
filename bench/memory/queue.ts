import type { Workload } from "../bench.ts"

const concurrency = 16
const payload = { id: "5b1f0f5e-2f0c-4d52-9a0f-7f2d7d3d7c11", rows: 250 }

/** Jobs are published first; the clock runs from the first worker until the last job is acknowledged. */
export const queueDrain: Workload = {
  name: `queue drain, ${concurrency} at once`,
  batch: 5_000,
  contenders: [
    {
      name: "cohort",
      setup: "one subscription with concurrency 16; timeout, retries and leases at their defaults",
      make: async () => {
        const Deferred = await import("effect/Deferred")
        const Effect = await import("effect/Effect")
        const Schema = await import("effect/Schema")
        const { makeRuntime, timedOn } = await import("./cohort.ts")
        const { EventQueue, Job } = await import("../../src/index.ts")
        const runtime = makeRuntime()
        const time = timedOn(runtime)
        const Import = Job.make("import", Schema.Struct({ id: Schema.String, rows: Schema.Number }))
        return async (n) => {
          await runtime.runPromise(
            Effect.gen(function* () {
              for (let i = 0; i < n; i++) yield* EventQueue.publish(Import, payload)
            })
          )
          let done = 0
          return time(
            Effect.scoped(
              Effect.gen(function* () {
                const last = yield* Deferred.make<void>()
                yield* EventQueue.subscribe(Import, {
                  concurrency,
                  process: () => (++done === n ? Effect.asVoid(Deferred.succeed(last, undefined)) : Effect.void)
                })
                yield* Deferred.await(last)
                while ((yield* EventQueue.depth(Import)).inFlight > 0) yield* Effect.yieldNow
              })
            )
          )
        }
      }
    },
    {
      name: "effect PersistedQueue",
      setup: "layerStoreMemory, 16 fibers that take in a loop; a fresh store each time, since it keeps what is done",
      goal: 4,
      make: async () => {
        const Deferred = await import("effect/Deferred")
        const Effect = await import("effect/Effect")
        const Layer = await import("effect/Layer")
        const PersistedQueue = await import("effect/persistence/PersistedQueue")
        const Schema = await import("effect/Schema")
        const layer = PersistedQueue.layer.pipe(Layer.provide(PersistedQueue.layerStoreMemory))
        return (n) =>
          Effect.runPromise(
            Effect.scoped(
              Effect.gen(function* () {
                const queue = yield* PersistedQueue.make({
                  name: "import",
                  schema: Schema.Struct({ id: Schema.String, rows: Schema.Number })
                })
                for (let i = 0; i < n; i++) yield* queue.offer(payload)
                let done = 0
                let taken = 0
                const last = yield* Deferred.make<void>()
                const start = process.hrtime.bigint()
                const taker = Effect.gen(function* () {
                  while (true) {
                    yield* queue.take(() => Effect.sync(() => ++done))
                    if (++taken === n) yield* Deferred.succeed(last, undefined)
                  }
                })
                for (let i = 0; i < concurrency; i++) yield* Effect.forkScoped(taker)
                yield* Deferred.await(last)
                return Number(process.hrtime.bigint() - start)
              })
            ).pipe(Effect.provide(layer))
          )
      }
    },
    {
      name: "awaited handlers (raw)",
      setup: "16 async functions that shift an array and await the handler",
      make: async () => {
        const { timed } = await import("../bench.ts")
        return (n) => {
          const jobs = Array.from({ length: n }, () => payload)
          let next = 0
          let done = 0
          const handler = async (_: typeof payload) => ++done
          return timed(() =>
            Promise.all(
              Array.from({ length: concurrency }, async () => {
                while (next < jobs.length) await handler(jobs[next++]!)
              })
            )
          )
        }
      }
    }
  ]
}
