/** Jobs are published first; the clock runs from the first worker until the last job is acknowledged. */
import type { Contender, Workload } from "../bench.ts"
import { payload } from "../queue.ts"

type Backend = "memory" | "redis"

const concurrency = 16

const makeRun = async (backend: Backend, telemetry: "off" | "defaults" | "traced") => {
  const Deferred = await import("effect/Deferred")
  const Effect = await import("effect/Effect")
  const Layer = await import("effect/Layer")
  const Logger = await import("effect/Logger")
  const ManagedRuntime = await import("effect/ManagedRuntime")
  const References = await import("effect/References")
  const Schema = await import("effect/Schema")
  const Tracer = await import("effect/Tracer")
  const { timed } = await import("../bench.ts")
  const { inFlight } = await import("../inFlight.ts")
  const { Cohort, EventQueue, Job } = await import("../../src/index.ts")

  /** Keeps spans as an exporter does until it sends them: a batch of 1,000. */
  let spans: Array<unknown> = []
  const recording = Tracer.make({
    span: (options) => {
      const span = new Tracer.NativeSpan(options)
      if (spans.push(span) === 1_000) spans = []
      return span
    }
  })
  const tracing = {
    off: Layer.succeed(References.TracerEnabled, false),
    defaults: Layer.empty,
    traced: Layer.succeed(Tracer.Tracer, recording)
  }[telemetry]
  const runtime = ManagedRuntime.make(
    Cohort.layerMixed({
      app: `bench-${process.pid}`,
      backend,
      redis: { url: process.env.REDIS_URL! },
      defaults: { telemetry: telemetry !== "off" }
    }).pipe(Layer.provideMerge(tracing), Layer.provide(Logger.layer([])))
  )
  const Import = Job.make(
    "import",
    Schema.Struct({
      id: Schema.String,
      name: Schema.String,
      email: Schema.String,
      rows: Schema.Number,
      createdAt: Schema.String
    })
  )
  return async (n: number) => {
    await runtime.runPromise(inFlight(n, 64, () => EventQueue.publish(Import, payload)))
    let done = 0
    return timed(() =>
      runtime.runPromise(
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
    )
  }
}

const off = (backend: Backend): Contender => ({
  name: "off",
  setup: "no counters, no durations, no log annotations (Defaults), and TracerEnabled false",
  // 20% of its throughput is what ours may take.
  goal: 0.8,
  make: () => makeRun(backend, "off")
})

export const drain = (backend: Backend, batch: number): Workload => ({
  name: `${backend} drain, ${concurrency} at once`,
  batch,
  contenders: [
    {
      name: "telemetry at its defaults",
      setup:
        "counters, durations and log annotations; no tracer but Effect's own, whose spans nobody sees: none are made",
      make: () => makeRun(backend, "defaults")
    },
    off(backend),
    {
      name: "with a recording tracer",
      setup: "the same, and a span for every publish on Redis and every attempt, kept in batches as an exporter does",
      make: () => makeRun(backend, "traced")
    }
  ]
})
