/** The plugins' stores: what holds in the memory of one process holds on Redis and PostgreSQL, for several. */
import { PgClient } from "@effect/sql-pg"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql"
import { storesMemory } from "../../src/host/Host.ts"
import { layerStores } from "../../src/host/redis/index.ts"
import { Instance } from "../../src/index.ts"
import { RedisConnection } from "../../src/layers/redis/index.ts"
import { type Task, TaskStore, TaskStoreSql } from "../../src/plugins/async-task-manager/index.ts"
import { AuthStore, AuthStoreSql } from "../../src/plugins/auth/index.ts"
import { CollectionStore, CollectionStoreSql } from "../../src/plugins/data-source-main/index.ts"
import * as StoreError from "../../src/plugins/StoreError.ts"
import * as PostgresServer from "../servers/PostgresServer.ts"
import * as RedisServer from "../servers/RedisServer.ts"

type Stores = AuthStore.AuthStore | TaskStore.TaskStore | CollectionStore.CollectionStore
type Shared = Context.Context<Stores>

let apps = 0
const newApp = () => `stores-${process.pid}-${apps++}`

const layerSql = Layer.mergeAll(TaskStoreSql.layer, AuthStoreSql.layer, CollectionStoreSql.layer)
const client = (url: string) => PgClient.layer({ url: Redacted.make(url) })
/** One database for all tests here: each has an app of its own. */
let database: string
const scope = Effect.runSync(Scope.make())
beforeAll(async () => {
  database = await Effect.runPromise(Scope.provide(PostgresServer.database, scope))
})
afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))

/** Two instances of a new app. */
const backends: Record<string, Effect.Effect<readonly [Shared, Shared], unknown, Scope.Scope>> = {
  memory: Effect.map(Layer.build(storesMemory), (stores) => [stores, stores] as const),
  redis: Effect.gen(function* () {
    const url = yield* RedisServer.sharedUrl
    const app = newApp()
    const build = Layer.build(
      Layer.fresh(layerStores.pipe(Layer.provide([RedisConnection.layer({ url }), Instance.layer({ app })])))
    )
    return [yield* build, yield* build] as const
  }),
  sql: Effect.gen(function* () {
    const app = newApp()
    const build = Layer.build(Layer.fresh(layerSql.pipe(Layer.provide([client(database), Instance.layer({ app })]))))
    // Beside each other, as instances start: of the first two, one creates the tables.
    return yield* Effect.all([build, build], { concurrency: 2 })
  })
}

const at = (millis: number) => DateTime.makeUnsafe(millis)

const task = (id: string, change: Partial<Task.Task> = {}): Task.Task => ({
  id,
  type: "t",
  params: { list: [], none: null, text: "é ∆ \ud800" },
  status: "pending",
  progress: { done: 0 },
  attempts: 0,
  instance: null,
  result: null,
  error: null,
  createdAt: at(1),
  startedAt: null,
  endedAt: null,
  ...change
})

const text = { name: "text", type: "text", required: false } as const
const count = { name: "count", type: "integer", required: false } as const

for (const [name, backend] of Object.entries(backends)) {
  const both = <Service>(tag: Context.Key<Stores, Service>) =>
    Effect.map(backend, ([a, b]) => [Context.get(a, tag), Context.get(b, tag)] as const)

  describe(name, () => {
    it.live("auth: the policy and the revoked tokens are everyone's", () =>
      Effect.gen(function* () {
        const [a, b] = yield* both(AuthStore.AuthStore)
        assert.deepStrictEqual(yield* a.policy, AuthStore.defaultPolicy)
        yield* a.setPolicy({ tokenSeconds: 5, maxSessions: 1 })
        assert.deepStrictEqual(yield* b.policy, { tokenSeconds: 5, maxSessions: 1 })

        yield* a.revoke("one", at(1_000))
        yield* a.revoke("two", at(2_000))
        yield* a.revoke("\ud800", at(3_000))
        assert.isTrue(yield* b.isRevoked("one"))
        assert.isFalse(yield* b.isRevoked("\ud801"))
        assert.strictEqual(yield* b.purge(at(1_000)), 1)
        assert.isFalse(yield* a.isRevoked("one"))
        assert.isTrue(yield* a.isRevoked("two"))
      })
    )

    it.live("tasks: of those that change one at the same time, one wins", () =>
      Effect.gen(function* () {
        const [a, b] = yield* both(TaskStore.TaskStore)
        yield* a.insert(task("1"))
        assert.deepStrictEqual(yield* b.get("1"), Option.some(task("1")))
        assert.deepStrictEqual(yield* b.get("2"), Option.none())

        const wins = yield* Effect.forEach(
          Array.from({ length: 20 }, (_, i) => (i % 2 === 0 ? a : b)),
          (store, i) => store.update("1", ["pending"], { status: "running", attempts: 1, instance: String(i) }, 0),
          { concurrency: "unbounded" }
        )
        assert.strictEqual(wins.filter(Option.isSome).length, 1)
        assert.deepStrictEqual(yield* b.get("1"), wins.find(Option.isSome))

        // A run is known by its number.
        assert.deepStrictEqual(yield* a.update("1", ["running"], { error: "late" }, 2), Option.none())
        assert.deepStrictEqual(yield* a.update("none", ["running"], { error: "late" }), Option.none())
        // Whoever does not mind how it is meanwhile gets through.
        const others = yield* Effect.forEach(
          Array.from({ length: 20 }, (_, i) => (i % 2 === 0 ? a : b)),
          (store, done) => store.update("1", ["running"], { progress: { done } }, 1),
          { concurrency: "unbounded" }
        )
        assert.isTrue(others.every(Option.isSome))
      })
    )

    it.live("tasks: newest first, by status, and forgotten when they ended long ago", () =>
      Effect.gen(function* () {
        const [a, b] = yield* both(TaskStore.TaskStore)
        const ids = (filter?: Parameters<(typeof b)["list"]>[0]) =>
          Effect.map(b.list(filter), (tasks) => tasks.map(({ id }) => id))
        yield* Effect.forEach(["1", "2", "3", "4", "5"], (id) => a.insert(task(id)))
        yield* a.update("4", ["pending"], { status: "running" })
        yield* a.update("2", ["pending"], { status: "canceled", endedAt: at(2_000) })
        yield* a.update("3", ["pending"], { status: "failed", endedAt: at(1_000) })
        yield* a.update("3", ["failed"], { status: "pending", endedAt: null })
        yield* a.update("5", ["pending"], { status: "succeeded", endedAt: at(1_000), result: [1.1, {}] })
        assert.deepStrictEqual(yield* ids(), ["5", "4", "3", "2", "1"])
        assert.deepStrictEqual(yield* ids({ limit: 2 }), ["5", "4"])
        assert.deepStrictEqual(yield* ids({ limit: 0 }), [])
        assert.deepStrictEqual(yield* ids({ status: "pending" }), ["3", "1"])
        assert.deepStrictEqual(yield* ids({ status: "succeeded" }), ["5"])
        assert.deepStrictEqual((yield* b.list({ limit: 1 }))[0]?.result, [1.1, {}])

        assert.strictEqual(yield* b.removeEndedBefore(at(2_000)), 1)
        assert.strictEqual(yield* b.removeEndedBefore(at(2_000)), 0)
        assert.deepStrictEqual(yield* ids(), ["4", "3", "2", "1"])
        assert.deepStrictEqual(yield* ids({ status: "succeeded" }), [])
        assert.strictEqual(yield* b.removeEndedBefore(at(2_001)), 1)
        assert.deepStrictEqual(yield* a.get("2"), Option.none())
      })
    )

    it.live("collections: rows by id, in the order they were first written, with the fields there are", () =>
      Effect.gen(function* () {
        const [a, b] = yield* both(CollectionStore.CollectionStore)
        const all = { offset: 0, limit: 100 }
        assert.isTrue(yield* a.create({ name: "one", fields: [text] }))
        assert.isFalse(yield* b.create({ name: "one", fields: [] }))
        assert.isTrue(yield* b.create({ name: "two", fields: [] }))
        assert.deepStrictEqual(yield* a.list, [
          { name: "one", fields: [text] },
          { name: "two", fields: [] }
        ])
        assert.deepStrictEqual(yield* b.get("three"), Option.none())

        yield* b.putRows("one", [
          { id: "x", row: { text: "1" } },
          { id: "y", row: { text: null } }
        ])
        yield* a.addField("one", count)
        assert.deepStrictEqual(yield* b.get("one"), Option.some({ name: "one", fields: [text, count] }))
        // Written for a definition that is not the current one any more.
        yield* b.putRows("one", [
          { id: "x", row: { text: "2", count: 0.1 + 0.2 } },
          { id: "z", row: { text: "3", count: 2 } }
        ])
        assert.strictEqual(yield* a.countRows("one"), 3)
        assert.deepStrictEqual(yield* a.rows("one", all), [
          { text: "2", count: 0.1 + 0.2 },
          { text: null },
          { text: "3", count: 2 }
        ])
        assert.deepStrictEqual(yield* a.rows("one", { offset: 1, limit: 1 }), [{ text: null }])
        assert.deepStrictEqual(yield* a.rows("one", { offset: 1, limit: 0 }), [])

        yield* a.removeField("one", "count")
        assert.deepStrictEqual(yield* b.rows("one", all), [{ text: "2" }, { text: null }, { text: "3" }])
        yield* a.addField("one", count)
        assert.deepStrictEqual(yield* b.rows("one", all), [{ text: "2" }, { text: null }, { text: "3" }])

        yield* a.putRows("three", [{ id: "x", row: {} }])
        assert.strictEqual(yield* a.countRows("three"), 0)
        assert.deepStrictEqual(yield* a.rows("three", all), [])
      })
    )

    it.live("names are any text, and of rows with one id in a batch the last counts", () =>
      Effect.gen(function* () {
        const [a, b] = yield* both(CollectionStore.CollectionStore)
        yield* a.create({ name: "one", fields: [text] })
        yield* a.putRows("one", [
          { id: "\u0000", row: { text: "nul \u0000" } },
          { id: "\ud800", row: { text: "1" } },
          { id: "\\ud800", row: { text: "2" } },
          { id: "\ud800", row: { text: "half \ud800" } }
        ])
        assert.deepStrictEqual(yield* b.rows("one", { offset: 0, limit: 10 }), [
          { text: "nul \u0000" },
          { text: "half \ud800" },
          { text: "2" }
        ])
        assert.deepStrictEqual(yield* b.get("\u0000"), Option.none())
        const [tasks] = yield* both(TaskStore.TaskStore)
        yield* tasks.insert(task("\u0000", { error: "nul \u0000", instance: '"\\' }))
        assert.deepStrictEqual(
          yield* tasks.get("\u0000"),
          Option.some(task("\u0000", { error: "nul \u0000", instance: '"\\' }))
        )
        assert.deepStrictEqual(yield* tasks.get("\ud800"), Option.none())
      })
    )

    it.live("collections: no field is lost when several are added at the same time", () =>
      Effect.gen(function* () {
        const [a, b] = yield* both(CollectionStore.CollectionStore)
        yield* a.create({ name: "one", fields: [] })
        const names = Array.from({ length: 20 }, (_, i) => `f${i}`)
        yield* Effect.forEach(names, (name, i) => (i % 2 === 0 ? a : b).addField("one", { ...text, name }), {
          concurrency: "unbounded"
        })
        const { fields } = yield* Effect.fromOption(yield* a.get("one"))
        assert.sameMembers(
          fields.map(({ name }) => name),
          names
        )
      })
    )
  })
}

describe("sql", () => {
  const build = (app: string, url = database) =>
    Layer.build(Layer.fresh(layerSql.pipe(Layer.provideMerge(client(url)), Layer.provide(Instance.layer({ app })))))

  it.live("instances that start together bring a new database up to date, each thing once", () =>
    Effect.gen(function* () {
      const url = yield* PostgresServer.database
      const all = yield* Effect.all(
        Array.from({ length: 6 }, () => build("start", url)),
        { concurrency: "unbounded" }
      )
      yield* Effect.forEach(all, (stores, i) => Context.get(stores, TaskStore.TaskStore).insert(task(`${i}`)))
      assert.lengthOf(yield* Context.get(all[0]!, TaskStore.TaskStore).list(), 6)
      const sql = Context.get(all[0]!, SqlClient.SqlClient)
      for (const table of ["tasks", "auth", "collections"]) {
        assert.lengthOf(yield* sql`SELECT * FROM ${sql(`cohort_${table}_migrations`)}`, 1)
      }
      // Again, on what is up to date.
      yield* build("start", url)
    })
  )

  it.live("two apps in one database do not see each other", () =>
    Effect.gen(function* () {
      const [a, b] = [yield* build(newApp()), yield* build(newApp())]
      yield* Context.get(a, TaskStore.TaskStore).insert(task("1"))
      yield* Context.get(b, TaskStore.TaskStore).insert(task("1", { status: "failed", endedAt: at(1) }))
      yield* Context.get(b, TaskStore.TaskStore).removeEndedBefore(at(2))
      assert.lengthOf(yield* Context.get(a, TaskStore.TaskStore).list(), 1)
      assert.lengthOf(yield* Context.get(b, TaskStore.TaskStore).list(), 0)

      const [as, bs] = [
        Context.get(a, CollectionStore.CollectionStore),
        Context.get(b, CollectionStore.CollectionStore)
      ]
      yield* as.create({ name: "one", fields: [text, count] })
      assert.isTrue(yield* bs.create({ name: "one", fields: [text] }))
      yield* as.putRows("one", [{ id: "x", row: { text: "1" } }])
      yield* as.removeField("one", "text")
      assert.deepStrictEqual(yield* bs.list, [{ name: "one", fields: [text] }])
      assert.strictEqual(yield* bs.countRows("one"), 0)

      yield* Context.get(a, AuthStore.AuthStore).setPolicy({ tokenSeconds: 1, maxSessions: 1 })
      yield* Context.get(a, AuthStore.AuthStore).revoke("one", at(1))
      assert.deepStrictEqual(yield* Context.get(b, AuthStore.AuthStore).policy, AuthStore.defaultPolicy)
      assert.isFalse(yield* Context.get(b, AuthStore.AuthStore).isRevoked("one"))
    })
  )

  it.live("writers of the same rows in opposite orders both get through", () =>
    Effect.gen(function* () {
      const app = newApp()
      const [a, b] = [yield* build(app), yield* build(app)].map((stores) =>
        Context.get(stores, CollectionStore.CollectionStore)
      ) as [CollectionStore.CollectionStore["Service"], CollectionStore.CollectionStore["Service"]]
      yield* a.create({ name: "one", fields: [text] })
      const rows = Array.from({ length: 2_000 }, (_, i) => ({ id: `${i}`, row: { text: `${i}` } }))
      yield* a.putRows("one", rows)
      for (let i = 0; i < 2; i++) {
        yield* Effect.all([a.putRows("one", rows), b.putRows("one", rows.toReversed())], { concurrency: 2 })
      }
      assert.strictEqual(yield* a.countRows("one"), 2_000)
      assert.deepStrictEqual(yield* b.rows("one", { offset: 1_999, limit: 10 }), [{ text: "1999" }])
    })
  )

  it.live("what a transaction stores is stored when it commits, or not at all", () =>
    Effect.gen(function* () {
      const stores = yield* build(newApp())
      const [tasks, collections] = [
        Context.get(stores, TaskStore.TaskStore),
        Context.get(stores, CollectionStore.CollectionStore)
      ]
      const sql = Context.get(stores, SqlClient.SqlClient)
      const both = Effect.gen(function* () {
        yield* tasks.transaction(tasks.insert(task("1")))
        yield* collections.transaction(collections.create({ name: "one", fields: [text] }))
      })
      const refused = yield* Effect.flip(collections.transaction(Effect.andThen(both, Effect.fail("refused"))))
      assert.strictEqual(refused, "refused")
      assert.deepStrictEqual(yield* tasks.get("1"), Option.none())
      assert.deepStrictEqual(yield* collections.list, [])
      yield* sql.withTransaction(both)
      assert.isTrue(Option.isSome(yield* tasks.get("1")))
      assert.lengthOf(yield* collections.list, 1)
    })
  )

  it.live(
    "a database that is away, or silent, is a failure that names the store, within a bound",
    () =>
      Effect.gen(function* () {
        const server = yield* PostgresServer.make()
        const stores = yield* build(newApp(), server.url)
        const tasks = Context.get(stores, TaskStore.TaskStore)
        yield* tasks.insert(task("1"))
        yield* server.freeze
        assert.strictEqual((yield* Effect.flip(tasks.list())).store, "task")
        yield* server.thaw
        yield* server.kill
        const collections = Context.get(stores, CollectionStore.CollectionStore)
        assert.strictEqual((yield* Effect.flip(collections.list)).store, "collection")
        const gone = yield* Effect.flip(collections.transaction(tasks.insert(task("2"))))
        assert.instanceOf(gone, StoreError.StoreError)
        yield* server.start
        yield* Effect.retry(tasks.insert(task("3")), { times: 50, schedule: Schedule.spaced("100 millis") })
        assert.deepStrictEqual(
          (yield* tasks.list()).map(({ id }) => id),
          ["3", "1"]
        )
      }),
    60_000
  )
})
