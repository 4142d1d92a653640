/** The plugins on PostgreSQL: what is changed in a transaction, by several instances. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { PgClient } from "@effect/sql-pg"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql"
import { Cohort, EventQueue, PluginHost, Transaction } from "../../src/index.ts"
import { MemoryHub } from "../../src/layers/memory/index.ts"
import { Task, Tasks, TaskStoreSql } from "../../src/plugins/async-task-manager/index.ts"
import { Auth, AuthStore, AuthStoreSql } from "../../src/plugins/auth/index.ts"
import {
  type Collection,
  Collections,
  CollectionStore,
  CollectionStoreSql,
  CsvFiles,
  plugin
} from "../../src/plugins/data-source-main/index.ts"
import * as PostgresServer from "../servers/PostgresServer.ts"

const text = (name: string): Collection.Field => ({ name, type: "text", required: false })
const noFiles = Layer.provide(CsvFiles.layerDirectory("/nowhere"), NodeServices.layer)

const Count = Task.type("count", { params: Schema.Int, result: Schema.Int })
const Fail = Task.type("fail", { params: Schema.Int, result: Schema.Int, maxRetries: 0 })

const until = (what: string, condition: Effect.Effect<boolean>) =>
  condition.pipe(
    Effect.delay("20 millis"),
    Effect.repeat({ until: (holds) => holds }),
    Effect.timeoutOrElse({ duration: "20 seconds", orElse: () => Effect.die(new Error(`never: ${what}`)) })
  )

const setUp = Effect.gen(function* () {
  const url = Redacted.make(yield* PostgresServer.database)
  const hub = yield* MemoryHub.make
  const ran: Array<number> = []

  const start = (id: string) =>
    Effect.gen(function* () {
      const services = Layer.mergeAll(Tasks.layer, Collections.layer, Auth.layer).pipe(
        Layer.provideMerge(Layer.mergeAll(TaskStoreSql.layer, CollectionStoreSql.layer, AuthStoreSql.layer, noFiles)),
        Layer.provideMerge(Layer.provide(Transaction.layer, PgClient.layer({ url }))),
        Layer.provideMerge(Cohort.layerMemory({ app: "test", id, hub }))
      )
      const host = PluginHost.layer([Tasks.plugin, plugin])
      const context = yield* Layer.build(Layer.fresh(Layer.provideMerge(host, services)))
      const collections = Context.get(context, Collections.Collections)
      yield* Context.get(context, Tasks.Tasks).register(Count, (n) => Effect.sync(() => ran.push(n)))
      yield* Context.get(context, Tasks.Tasks).register(Fail, (n) =>
        Effect.andThen(
          Effect.sync(() => ran.push(n)),
          Effect.fail("no")
        )
      )
      return {
        ...collections,
        tasks: Context.get(context, Tasks.Tasks),
        auth: Context.get(context, Auth.Auth),
        store: Context.get(context, CollectionStore.CollectionStore),
        sql: Context.get(context, SqlClient.SqlClient),
        depth: Effect.provide(EventQueue.depth(Tasks.RunTask), context),
        fieldsOf: (name: string) =>
          Effect.map(collections.get(name), ({ fields }) => fields.map(({ name }) => name)).pipe(
            Effect.orElseSucceed(() => undefined)
          )
      }
    })

  const [a, b] = [yield* start("a"), yield* start("b")]
  yield* a.create({ name: "zip", fields: [text("code"), text("city")] })
  const bothHave = (fields: ReadonlyArray<string>) =>
    until(
      `both have ${fields}`,
      Effect.map(
        Effect.all([a.fieldsOf("zip"), b.fieldsOf("zip")]),
        (all) => JSON.stringify(all) === JSON.stringify([fields, fields])
      )
    )
  yield* bothHave(["code", "city"])
  return { a, b, bothHave, ran }
})

describe("deleting a field", () => {
  /** `a` deletes in a transaction of its own, `b` in the meantime, or so it wants. */
  const race = (end: Effect.Effect<void, string>) =>
    Effect.gen(function* () {
      const cluster = yield* setUp
      const { a, b } = cluster
      const removed = yield* Deferred.make<void>()
      const go = yield* Deferred.make<void>()
      const first = yield* Effect.gen(function* () {
        yield* a.removeField("zip", "city")
        yield* Deferred.succeed(removed, undefined)
        yield* Deferred.await(go)
        return yield* end
      }).pipe(a.sql.withTransaction, Effect.result, Effect.forkChild)
      yield* Deferred.await(removed)
      const second = yield* Effect.forkChild(Effect.result(b.removeField("zip", "city")))
      // It has had the time to decide on what is not committed, and to be wrong.
      yield* Effect.raceFirst(Fiber.await(second), Effect.sleep("500 millis"))
      // Nobody has it in memory either.
      assert.deepStrictEqual(yield* a.fieldsOf("zip"), ["code", "city"])
      yield* Deferred.succeed(go, undefined)
      return { ...cluster, first: yield* Fiber.join(first), second: yield* Fiber.join(second) }
    })

  it.live("holds its lock until the transaction around it commits: who comes second finds it gone", () =>
    Effect.gen(function* () {
      const { bothHave, first, second } = yield* race(Effect.void)
      assert.isTrue(Result.isSuccess(first))
      assert.strictEqual(Result.isFailure(second) && second.failure._tag, "FieldNotFound")
      yield* bothHave(["code"])
    })
  )

  it.live("that is rolled back leaves it to who comes second, and no trace in memory", () =>
    Effect.gen(function* () {
      const { bothHave, first, second } = yield* race(Effect.fail("refused"))
      assert.isTrue(Result.isFailure(first))
      assert.isTrue(Result.isSuccess(second))
      yield* bothHave(["code"])
    })
  )

  it.live("is one with the other changes of its transaction", () =>
    Effect.gen(function* () {
      const { a, b, bothHave } = yield* setUp
      const all = Effect.gen(function* () {
        yield* a.addField("zip", text("state"))
        yield* a.removeField("zip", "code")
        yield* a.create({ name: "other", fields: [] })
        // In the transaction it is as it will be.
        assert.strictEqual((yield* Effect.flip(a.addField("zip", text("state"))))._tag, "NameTaken")
      })
      yield* Effect.flip(a.sql.withTransaction(Effect.andThen(all, Effect.fail("refused"))))
      yield* bothHave(["code", "city"])
      assert.deepStrictEqual(yield* b.store.list, [{ name: "zip", fields: [text("code"), text("city")] }])
      yield* a.sql.withTransaction(all)
      yield* bothHave(["city", "state"])
      yield* until(
        "b has the other",
        Effect.map(b.fieldsOf("other"), (fields) => fields !== undefined)
      )
    })
  )
})

describe("a task", () => {
  it.live("is never started for a row that was rolled back, and started when it is committed", () =>
    Effect.gen(function* () {
      const { a, b, ran } = yield* setUp
      yield* Effect.flip(a.sql.withTransaction(Effect.andThen(a.tasks.start(Count, 1), Effect.fail("refused"))))
      const started = yield* Deferred.make<string>()
      const go = yield* Deferred.make<void>()
      const fiber = yield* Effect.gen(function* () {
        // A savepoint that is rolled back.
        yield* Effect.flip(a.sql.withTransaction(Effect.andThen(a.tasks.start(Count, 2), Effect.fail("refused"))))
        yield* Deferred.succeed(started, yield* a.tasks.start(Count, 3))
        yield* Deferred.await(go)
      }).pipe(a.sql.withTransaction, Effect.forkChild)
      const id = yield* Deferred.await(started)
      // One without a transaction overtakes it.
      yield* b.tasks.start(Count, 4)
      yield* until(
        "4 has run",
        Effect.sync(() => ran.includes(4))
      )
      assert.deepStrictEqual(ran, [4])
      assert.strictEqual((yield* Effect.flip(b.tasks.get(id)))._tag, "TaskNotFound")
      yield* Deferred.succeed(go, undefined)
      yield* Fiber.join(fiber)
      yield* until("3 has run", Effect.orDie(Effect.map(b.tasks.get(id), ({ status }) => status === "succeeded")))
      assert.deepStrictEqual(ran, [4, 3])
      assert.strictEqual((yield* a.depth).ready, 0)
    })
  )

  it.live("that failed runs again when its redrive is committed, not before, and not when it is rolled back", () =>
    Effect.gen(function* () {
      const { a, ran } = yield* setUp
      const id = yield* a.tasks.start(Fail, 1)
      const isDead = Effect.map(a.depth, ({ dead }) => dead === 1)
      yield* until("it is a dead letter", Effect.orDie(isDead))
      yield* Effect.flip(a.sql.withTransaction(Effect.andThen(a.tasks.redrive([id]), Effect.fail("refused"))))
      assert.isTrue(yield* isDead)
      assert.strictEqual((yield* a.tasks.get(id)).status, "failed")
      const redriven = yield* a.sql.withTransaction(
        Effect.tap(a.tasks.redrive("all"), () => Effect.map(isDead, (isDead) => assert.isTrue(isDead)))
      )
      assert.strictEqual(redriven, 1)
      yield* until(
        "it has run again",
        Effect.andThen(
          Effect.orDie(isDead),
          Effect.sync(() => ran.length === 2)
        )
      )
      yield* until("it is a dead letter again", Effect.orDie(isDead))
    })
  )
})

describe("tokens", () => {
  it.live(
    "have a policy that, changed in a transaction, is read from its commit on, and never when that is rolled back",
    () =>
      Effect.gen(function* () {
        const { a, b } = yield* setUp
        const next = { tokenSeconds: 7, maxSessions: 7 }
        const change = Effect.gen(function* () {
          yield* a.auth.setPolicy(next)
          // Another instance, which does not see what is not committed, and would keep what it reads.
          assert.deepStrictEqual(yield* b.auth.policy, AuthStore.defaultPolicy)
        })
        yield* b.auth.policy
        yield* Effect.flip(a.sql.withTransaction(Effect.andThen(change, Effect.fail("refused"))))
        assert.deepStrictEqual(yield* b.auth.policy, AuthStore.defaultPolicy)
        yield* a.sql.withTransaction(change)
        yield* until("b has it", Effect.orDie(Effect.map(b.auth.policy, ({ tokenSeconds }) => tokenSeconds === 7)))
      })
  )

  it.live("revoked in a transaction that is rolled back are valid", () =>
    Effect.gen(function* () {
      const { a, b } = yield* setUp
      const token = yield* a.auth.issue
      yield* Effect.flip(a.sql.withTransaction(Effect.andThen(a.auth.revoke(token), Effect.fail("refused"))))
      assert.strictEqual(yield* b.auth.check(token), "valid")
      yield* a.sql.withTransaction(a.auth.revoke(token))
      assert.strictEqual(yield* b.auth.check(token), "revoked")
    })
  )
})
