/** Two apps that use the same names on one Redis do not see each other. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Cache, Cohort, EventQueue, Job, Lock, PubSub, SyncMessage, Topic } from "../../src/index.ts"
import * as RedisServer from "../servers/RedisServer.ts"

const app = (url: string, name: string) =>
  Effect.map(
    Layer.build(Cohort.layerRedis({ url, app: name })),
    (context) =>
      <A, E, R>(effect: Effect.Effect<A, E, R>) =>
        Effect.orDie(Effect.provide(effect, context))
  )

describe("two apps on one Redis", () => {
  it.live("do not see each other, whatever their names look like", () =>
    Effect.gen(function* () {
      const { url } = yield* RedisServer.make()
      const shop = yield* app(url, "shop")
      const other = yield* app(url, "shop:cache")

      const cacheOf = Cache.make("users", Schema.String)
      const ours = yield* shop(cacheOf)
      const theirs = yield* other(cacheOf)
      yield* shop(ours.set("1", "ours"))
      assert.deepStrictEqual(yield* other(theirs.get("1")), Option.none())
      yield* other(theirs.reset)
      assert.deepStrictEqual(yield* shop(ours.get("1")), Option.some("ours"))

      const held = yield* Deferred.make<void>()
      yield* Effect.forkScoped(
        shop(Lock.runExclusive("schema", () => Effect.andThen(Deferred.succeed(held, undefined), Effect.never)))
      )
      yield* Deferred.await(held)
      assert.isTrue(Option.isSome(yield* other(Effect.scoped(Lock.tryAcquire("schema")))), "the other's lock is free")

      const heard: Array<string> = []
      const listen = (name: string) => (message: string) =>
        Effect.sync(() => void heard.push(`${name} hears ${message}`))
      const News = Topic.make("news", Schema.String)
      const State = SyncMessage.make("state", Schema.String)
      for (const [name, run] of [
        ["shop", shop],
        ["other", other]
      ] as const) {
        yield* run(PubSub.subscribe(News, listen(name)))
        yield* run(SyncMessage.subscribe(State, { handle: listen(name), resync: Effect.void }))
      }
      yield* shop(PubSub.publish(News, "news", { skipSelf: false }))
      yield* other(SyncMessage.publish(State, "state"))

      const Task = Job.make("task", Schema.String)
      yield* shop(EventQueue.publish(Task, "job", { id: "1" }))
      assert.isFalse((yield* other(EventQueue.publish(Task, "job of the other", { id: "1" }))).duplicate)
      yield* other(EventQueue.subscribe(Task, { process: listen("other") }))
      yield* Effect.promise(() =>
        RedisServer.waitUntil(
          () => heard.length >= 2,
          () => `heard only ${heard}`
        )
      )
      yield* Effect.sleep("300 millis")
      assert.sameMembers(heard, ["shop hears news", "other hears job of the other"])
      assert.strictEqual((yield* shop(EventQueue.depth(Task))).ready, 1)
    })
  )
})
