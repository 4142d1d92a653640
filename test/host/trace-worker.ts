/**
 * One of two processes whose spans go to the collector that the environment names: `publisher` publishes a job inside a
 * span, `worker` handles it and broadcasts, `publisher` handles that and ends. Arguments: role, URL of Redis, app.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Telemetry from "../../src/host/Telemetry.ts"
import { Cohort, EventQueue, Job, PubSub, Topic } from "../../src/index.ts"

const [, , role = "", url = "", app = ""] = process.argv
const Work = Job.make("work", Schema.String)
const Done = Topic.make("done", Schema.String)

const publisher = Effect.gen(function* () {
  const done = yield* Deferred.make<void>()
  yield* PubSub.subscribe(Done, () => Deferred.succeed(done, undefined))
  yield* Effect.withSpan(EventQueue.publish(Work, "one"), "request", { root: true })
  yield* Deferred.await(done)
  // The handler has not quite ended: this runs inside of it.
  yield* Effect.yieldNow
})

const worker = Effect.andThen(
  EventQueue.subscribe(Work, { process: (text) => PubSub.publish(Done, text) }),
  Effect.andThen(
    Effect.sync(() => process.stdout.write("ready\n")),
    Effect.never
  )
)

// Spans are sent when the layer closes.
Effect.scoped(role === "worker" ? worker : publisher).pipe(
  Effect.provide(
    Cohort.layerRedis({ app, id: role, url }).pipe(Layer.provideMerge(Telemetry.layer({ app, id: role, version: "1" })))
  ),
  NodeRuntime.runMain
)
