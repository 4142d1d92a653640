/** A payload of the wrong shape does not compile. Checked by types.test.ts; never run. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Cache, EventQueue, Job, Plugin, PubSub, SyncMessage, Topic } from "../../src/index.ts"
import { Task, Tasks } from "../../src/plugins/async-task-manager/index.ts"
import { assertEqual } from "./expect.ts"

const Order = Schema.Struct({ id: Schema.String, amount: Schema.Number })
const names = Plugin.namespace("shop")

// --- broadcasts ---

const Ordered = Topic.make("ordered", Order)
PubSub.publish(Ordered, { id: "1", amount: 2 })
// @ts-expect-error amount is a number
PubSub.publish(Ordered, { id: "1", amount: "2" })
// @ts-expect-error amount is missing
PubSub.publish(Ordered, { id: "1" })
// @ts-expect-error there is no such field
PubSub.publish(Ordered, { id: "1", amount: 2, colour: "red" })
PubSub.subscribe(Ordered, (order) => {
  assertEqual<typeof order, { readonly id: string; readonly amount: number }>(true)
  return Effect.void
})
// @ts-expect-error a handler of something else
PubSub.subscribe(Ordered, (order: { readonly name: string }) => Effect.log(order.name))
// @ts-expect-error a handler returns an Effect
PubSub.subscribe(Ordered, (order) => order.amount)

// --- jobs ---

const Ship = Job.make("ship", Order, { maxRetries: 3 })
EventQueue.publish(Ship, { id: "1", amount: 2 }, { delay: "1 minute" })
// @ts-expect-error id is a string
EventQueue.publish(Ship, { id: 1, amount: 2 })
// @ts-expect-error a delay is a duration
EventQueue.publish(Ship, { id: "1", amount: 2 }, { delay: "soon" })
EventQueue.subscribe(Ship, {
  concurrency: "unbounded",
  process: (order, info) => {
    assertEqual<typeof order, { readonly id: string; readonly amount: number }>(true)
    assertEqual<typeof info, EventQueue.JobInfo>(true)
    return Effect.void
  }
})
// @ts-expect-error a handler of something else
EventQueue.subscribe(Ship, {
  process: (order: { readonly name: string }) => Effect.log(order.name)
})
// @ts-expect-error concurrency is a number, or "unbounded"
EventQueue.subscribe(Ship, { process: () => Effect.void, concurrency: "many" })

// --- sync messages ---

const Changed = SyncMessage.make(
  "shop",
  Schema.Union([
    Schema.Struct({ type: Schema.Literal("added"), id: Schema.String }),
    Schema.Struct({ type: Schema.Literal("removed"), id: Schema.String, why: Schema.String })
  ])
)
SyncMessage.publish(Changed, { type: "added", id: "1" })
// @ts-expect-error there is no such type
SyncMessage.publish(Changed, { type: "changed", id: "1" })
// @ts-expect-error why is missing
SyncMessage.publish(Changed, { type: "removed", id: "1" })
// @ts-expect-error resync is what makes a lost message harmless
SyncMessage.subscribe(Changed, { handle: () => Effect.void })
Plugin.make("shop", {
  sync: {
    message: Changed,
    handle: (message) => {
      assertEqual<
        typeof message,
        | { readonly type: "added"; readonly id: string }
        | { readonly type: "removed"; readonly id: string; readonly why: string }
      >(true)
      return Effect.void
    },
    resync: Effect.void
  }
})

// --- caches ---

export const caches = Effect.gen(function* () {
  const orders = yield* Cache.make("orders", Order)
  yield* orders.set("1", { id: "1", amount: 2 })
  // @ts-expect-error amount is a number
  yield* orders.set("1", { id: "1", amount: "2" })
  // @ts-expect-error a key is a string
  yield* orders.set(1, { id: "1", amount: 2 })
  // @ts-expect-error amount is missing
  yield* orders.mset([["1", { id: "1" }]])
  // @ts-expect-error the load returns something else
  yield* orders.wrap("1", Effect.succeed({ id: "1" }))
  yield* orders.wrapWithCondition("1", Effect.succeed({ id: "1", amount: 2 }), {
    isCacheable: (order) => {
      assertEqual<typeof order, { readonly id: string; readonly amount: number }>(true)
      return order.amount > 1
    }
  })
  // @ts-expect-error a ttl is a duration
  yield* orders.set("1", { id: "1", amount: 2 }, { ttl: "a while" })
})

// --- the namespace of a plugin keeps the types ---

PubSub.publish(names.topic("ordered", Order), { id: "1", amount: 2 })
// @ts-expect-error amount is a number
PubSub.publish(names.topic("ordered", Order), { id: "1", amount: "2" })
// @ts-expect-error amount is a number
EventQueue.publish(names.job("ship", Order), { id: "1", amount: "2" })
// @ts-expect-error amount is a number
SyncMessage.publish(names.sync(Order), { id: "1", amount: "2" })

// --- task types ---

const Report = Task.type("report", { params: Order, result: Schema.Struct({ pages: Schema.Int }) })
export const tasks = Effect.gen(function* () {
  const tasks = yield* Tasks.Tasks
  yield* tasks.start(Report, { id: "1", amount: 2 })
  // @ts-expect-error amount is missing
  yield* tasks.start(Report, { id: "1" })
  yield* tasks.register(Report, ({ amount }) => Effect.succeed({ pages: amount }))
  // @ts-expect-error the handler returns something else than the type's result
  yield* tasks.register(Report, ({ amount }) => Effect.succeed({ chapters: amount }))
})
