import { assert, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import { Cohort, Defaults, EventQueue, Job, Lock } from "../../src/index.ts"
import { TestEventQueue } from "../../src/testing/index.ts"

const Sleep = Job.make("sleep", Schema.Void, { timeout: "1 hour" })

const configured = Cohort.layerConfig.pipe(
  Layer.provide(
    ConfigProvider.layer(
      ConfigProvider.fromUnknown({
        COHORT_LOCK_TTL: "3 seconds",
        COHORT_QUEUE_CONCURRENCY: "2",
        COHORT_SHUTDOWN_TIMEOUT: "5 seconds"
      })
    )
  )
)

const lockLasts3Seconds = Effect.gen(function* () {
  const lease = yield* Lock.acquire("key", { renew: false })
  yield* TestClock.adjust("2 seconds")
  assert.isTrue(yield* lease.isHeld)
  yield* TestClock.adjust("1 second")
  assert.isFalse(yield* lease.isHeld)
})

it.effect("a lock has the ttl of the environment where the caller gives none", () =>
  lockLasts3Seconds.pipe(Effect.provide(configured))
)

const provided = Layer.succeed(Defaults.Defaults, { lockTtl: "3 seconds", queueLease: "1 minute" })
const bundles = {
  layerMemory: Cohort.layerMemory(),
  layerMixed: Cohort.layerMixed({ defaults: { queueLease: "2 minutes" } }),
  layerConfig: Cohort.layerConfig.pipe(
    Layer.provide(ConfigProvider.layer(ConfigProvider.fromUnknown({ COHORT_QUEUE_LEASE: "2 minutes" })))
  )
}

for (const [name, bundle] of Object.entries(bundles)) {
  it.effect(`${name}: what is provided applies where neither the caller nor the options say anything`, () =>
    lockLasts3Seconds.pipe(Effect.provide(bundle.pipe(Layer.provide(provided))))
  )
}

it.effect("a subscription has the concurrency and the time to drain of the environment", () =>
  Effect.gen(function* () {
    let running = 0
    let interrupted = 0
    const subscribed = yield* Effect.forkChild(
      Effect.scoped(
        Effect.andThen(
          EventQueue.subscribe(Sleep, {
            process: () =>
              Effect.andThen(
                Effect.sync(() => running++),
                Effect.never
              ).pipe(Effect.onInterrupt(() => Effect.sync(() => interrupted++)))
          }),
          Effect.delay(Effect.void, "1 minute")
        )
      )
    )
    yield* Effect.forEach([1, 2, 3], () => EventQueue.publish(Sleep, undefined))
    yield* TestClock.adjust("1 minute")
    assert.strictEqual(running, 2)
    yield* TestClock.adjust("4 seconds")
    assert.strictEqual(interrupted, 0)
    yield* TestClock.adjust("1 second")
    yield* Fiber.join(subscribed)
    assert.strictEqual(interrupted, 2)
  }).pipe(Effect.provide(configured))
)

it.effect("a test that is over while a handler runs does not wait for it, told not to", () =>
  Effect.gen(function* () {
    yield* EventQueue.subscribe(Sleep, { process: () => Effect.never })
    yield* EventQueue.publish(Sleep, undefined)
    yield* TestClock.adjust("1 second")
  }).pipe(
    Effect.provide(
      TestEventQueue.layerTest.pipe(Layer.provide(Layer.succeed(Defaults.Defaults, { shutdownTimeout: 0 })))
    )
  )
)

const seenBy = (telemetry: string) =>
  Effect.gen(function* () {
    const seen = yield* Effect.scoped(
      Effect.gen(function* () {
        let annotations: object = {}
        yield* EventQueue.subscribe(Sleep, {
          process: () => Effect.map(References.CurrentLogAnnotations, (found) => (annotations = found))
        })
        yield* EventQueue.publish(Sleep, undefined)
        yield* TestClock.adjust("1 second")
        const counted = (yield* Metric.snapshot).map(({ id }) => id).filter((id) => id.startsWith("messaging."))
        return { annotations: Object.keys(annotations), counted: [...new Set(counted)].length }
      })
    )
    return seen
  }).pipe(
    Effect.provide(
      Cohort.layerConfig.pipe(
        Layer.provide(ConfigProvider.layer(ConfigProvider.fromUnknown({ COHORT_TELEMETRY: telemetry })))
      )
    ),
    Effect.provideService(Metric.MetricRegistry, new Map())
  )

it.effect("nothing is counted, and no log annotated, where the environment has telemetry off", () =>
  Effect.gen(function* () {
    assert.deepStrictEqual(yield* seenBy("true"), {
      annotations: ["channel", "instance", "job", "attempt"],
      counted: 3
    })
    assert.deepStrictEqual(yield* seenBy("false"), { annotations: [], counted: 0 })
  })
)
