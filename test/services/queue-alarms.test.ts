/** Alarms when some queues cannot be asked. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import { Cohort, EventQueue, Job, Membership, QueueAlarms, Reason } from "../../src/index.ts"

it.effect("a queue that cannot be asked keeps no other's alarm from being raised, and its own as it was", () =>
  Effect.gen(function* () {
    const queue = yield* EventQueue.EventQueue
    let isSilent = true
    const unavailable = new Reason.Unavailable({ backend: "memory", detail: "a worker is frozen" })
    const alarms = yield* QueueAlarms.make().pipe(
      Effect.provideService(EventQueue.EventQueue, {
        ...queue,
        depth: (job) =>
          isSilent && job.channel === "silent"
            ? Effect.fail(new EventQueue.EventQueueError({ reason: unavailable }))
            : queue.depth(job)
      })
    )
    const raised = Effect.map(alarms.current, (alarms) =>
      alarms.map(({ channel, kind }) => `${kind} ${channel}`).sort()
    )
    for (const channel of ["silent", "mail"]) yield* EventQueue.publish(Job.make(channel, Schema.String), "x")
    yield* TestClock.adjust("2 minutes")
    assert.deepStrictEqual(yield* raised, ["unserved mail"])
    isSilent = false
    yield* TestClock.adjust("2 minutes")
    assert.deepStrictEqual(yield* raised, ["unserved mail", "unserved silent"])
    isSilent = true
    yield* TestClock.adjust("2 minutes")
    assert.deepStrictEqual(yield* raised, ["unserved mail", "unserved silent"])
  }).pipe(Effect.provide(Membership.layer.pipe(Layer.provideMerge(Cohort.layerMemory()))))
)
