/** What becomes of jobs that have ended while the backend refuses the end of another. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import { EventQueue, EventQueueStore, Instance, Job, Reason } from "../../src/index.ts"
import { MemoryEventQueueStore, MemoryHub } from "../../src/layers/memory/index.ts"

const Numbered = Job.make("task", Schema.Number)

let isRefusing = true
/** How often each job's end was sent. */
const sent = new Map<string, number>()

/** Takes no end of a job that dies, while it is refusing. */
const refusing = Layer.effect(
  EventQueueStore.EventQueueStore,
  Effect.map(MemoryEventQueueStore.make, (store) => ({
    ...store,
    worker: (channel: string, options: { readonly lease: number; readonly concurrency: number }) =>
      Effect.map(store.worker(channel, options), (worker) => ({
        ...worker,
        ready: worker.ready,
        take: (max: number) => worker.take(max),
        renew: (deliveries: ReadonlyArray<EventQueueStore.Delivery>) => worker.renew(deliveries),
        settle: (settlements: ReadonlyArray<EventQueueStore.Settlement>) => {
          for (const { delivery, outcome } of settlements) {
            if (outcome._tag === "ack") sent.set(delivery.id, (sent.get(delivery.id) ?? 0) + 1)
          }
          return Effect.flatMap(
            worker.settle(settlements.filter(({ outcome }) => !isRefusing || outcome._tag !== "bury")),
            (accepted): Effect.Effect<ReadonlyArray<boolean>, Reason.Unavailable> =>
              accepted.length === settlements.length
                ? Effect.succeed(accepted)
                : Effect.fail(new Reason.Unavailable({ backend: "test", detail: "no place for dead letters" }))
          )
        }
      }))
  }))
)

const queue = EventQueue.layer.pipe(
  Layer.provide(refusing),
  Layer.provide(MemoryHub.layer),
  Layer.provide(Instance.layer({ app: "test" }))
)

it.effect("an end that is refused does not hold up those that come after it, and does not have them sent again", () =>
  Effect.gen(function* () {
    yield* EventQueue.subscribe(Numbered, {
      concurrency: 2,
      process: (n) => (n === 0 ? Effect.fail("no") : Effect.sleep("10 millis"))
    })
    for (let n = 0; n <= 10; n++) yield* EventQueue.publish(Numbered, n)
    yield* TestClock.adjust("20 seconds")
    const depth = yield* EventQueue.depth(Numbered)
    isRefusing = false
    yield* TestClock.adjust("20 seconds")
    assert.deepStrictEqual([...sent.values()], Array(10).fill(1))
    assert.deepStrictEqual(depth, { ready: 0, delayed: 0, inFlight: 1, dead: 0 })
    assert.deepStrictEqual(yield* EventQueue.depth(Numbered), { ready: 0, delayed: 0, inFlight: 0, dead: 1 })
  }).pipe(Effect.scoped, Effect.provide(queue))
)
