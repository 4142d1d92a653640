import { assert, describe, it } from "@effect/vitest"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import { PluginHost } from "../../src/index.ts"
import { Tasks, TaskStore } from "../../src/plugins/async-task-manager/index.ts"
import { Collection, Collections, CollectionStore, CsvFiles, plugin } from "../../src/plugins/data-source-main/index.ts"
import { makeCluster } from "./cluster.ts"

type Field = Collection.Field

const text = (name: string, required = false): Field => ({ name, type: "text", required })

/**
 * A store like a database without transactions: every answer takes `slow.by`, and a
 * change of fields writes back what was read before it. It says when two changes meet.
 */
const makeStore = () => {
  const slow: { by: Duration.Input } = { by: 0 }
  const changes = { running: new Map<string, number>(), most: 0, overlapping: 0 }
  const layer = Layer.effect(
    CollectionStore.CollectionStore,
    Effect.gen(function* () {
      const memory = yield* CollectionStore.CollectionStore
      const fields = new Map<string, ReadonlyArray<Field>>()
      const read = (name: string) =>
        Option.map(Option.fromUndefinedOr(fields.get(name)), (fields) => ({ name, fields }))
      const answer = <A>(evaluate: () => A) => Effect.tap(Effect.sync(evaluate), () => Effect.sleep(slow.by))

      const change = (name: string, f: (fields: ReadonlyArray<Field>) => ReadonlyArray<Field>) =>
        Effect.acquireUseRelease(
          Effect.sync(() => {
            const running = (changes.running.get(name) ?? 0) + 1
            changes.running.set(name, running)
            if (running > 1) changes.overlapping++
            changes.most = Math.max(
              changes.most,
              [...changes.running.values()].reduce((sum, n) => sum + n, 0)
            )
          }),
          () =>
            Effect.map(
              answer(() => fields.get(name)!),
              (read) => void fields.set(name, f(read))
            ),
          () => Effect.sync(() => changes.running.set(name, changes.running.get(name)! - 1))
        )

      return {
        ...memory,
        list: answer(() => [...fields.keys()].map((name) => Option.getOrThrow(read(name)))),
        get: (name) => answer(() => read(name)),
        create: (collection) =>
          Effect.tap(memory.create(collection), (created) =>
            Effect.sync(() => (created ? void fields.set(collection.name, collection.fields) : undefined))
          ),
        addField: (name, field) => change(name, (fields) => [...fields, field]),
        removeField: (name, field) =>
          Effect.andThen(
            change(name, (fields) => fields.filter((other) => other.name !== field)),
            memory.removeField(name, field)
          )
      }
    })
  ).pipe(Layer.provide(CollectionStore.layerMemory))
  return { slow, changes, layer }
}

const noFiles = Layer.succeed(CsvFiles.CsvFiles, { size: () => Effect.succeed(0), read: () => Stream.empty })

const setup = (instances: number) =>
  Effect.gen(function* () {
    const { changes, layer, slow } = makeStore()
    const cluster = yield* makeCluster({
      stores: Layer.mergeAll(layer, TaskStore.layerMemory, noFiles),
      services: Layer.mergeAll(Tasks.layer, Collections.layer),
      host: PluginHost.layer([plugin, Tasks.plugin])
    })
    const start = (id: string) => cluster.start(id)
    const apps = []
    for (let i = 0; i < instances; i++) apps.push(yield* start(`i${i}`))
    type App = (typeof apps)[number]

    /** What an instance has in memory is what the store has, also as its validator sees it. */
    const assertCurrent = (app: App, name: string) =>
      Effect.gen(function* () {
        const stored = Option.getOrThrow(yield* app.on(CollectionStore.CollectionStore.use((store) => store.get(name))))
        assert.deepStrictEqual(yield* app.on(get(name)), stored)
        const row = (yield* app.on(validator(name)))(Object.fromEntries(stored.fields.map(({ name }) => [name, "x"])))
        assert.sameMembers(
          Object.keys(Result.getOrThrow(row)),
          stored.fields.map(({ name }) => name)
        )
      })

    return { slow, changes, start, assertCurrent, apps: apps as [App, App, App] }
  })

const use = Collections.Collections.use.bind(Collections.Collections)
const create = (name: string, fields: ReadonlyArray<Field> = []) =>
  use((collections) => collections.create({ name, fields }))
const get = (name: string) => use((collections) => collections.get(name))
const validator = (name: string) => use((collections) => collections.validator(name))
const addField = (name: string, field: Field) => use((collections) => collections.addField(name, field))
const removeField = (name: string, field: string) => use((collections) => collections.removeField(name, field))
const putRow = (name: string, id: string, row: unknown) => use((collections) => collections.putRow(name, id, row))
const rows = (name: string) =>
  CollectionStore.CollectionStore.use((store) => store.rows(name, { offset: 0, limit: 1_000 }))

const fieldNames = (collection: Collection.Collection) => collection.fields.map(({ name }) => name)

describe("every instance knows the same collections", () => {
  it.effect("a field added on one instance is validated on the others after the sync debounce", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(3)
      yield* apps[1].on(create("books"))
      // A sender's first message causes a resync at once; the next ones are debounced.
      yield* apps[1].on(addField("books", text("title", true)))
      yield* TestClock.adjust("1 second")
      for (const app of apps) yield* app.on(putRow("books", app.id, { title: "Dune" }))

      yield* apps[1].on(addField("books", { name: "year", type: "integer", required: true }))
      // Here at once.
      const here = yield* Effect.flip(apps[1].on(putRow("books", "x", { title: "Dune" })))
      assert.strictEqual(here._tag, "InvalidRow")
      assert.include(here.message, "year: is required")
      // There when the messages have settled.
      yield* TestClock.adjust("999 millis")
      yield* apps[0].on(putRow("books", "y", { title: "Dune" }))
      yield* TestClock.adjust("1 milli")
      for (const app of apps) {
        const error = yield* Effect.flip(app.on(putRow("books", "z", { title: "Dune", year: "1965?" })))
        assert.include(error.message, `year: expected a whole number, got "1965?"`)
        const row = yield* app.on(putRow("books", app.id, { title: "Dune", year: "1965" }))
        assert.deepStrictEqual(row, { title: "Dune", year: 1965 })
      }
    })
  )

  it.effect("a field removed on one instance is gone on the others, and from the rows", () =>
    Effect.gen(function* () {
      const { apps, assertCurrent } = yield* setup(3)
      yield* apps[0].on(create("books", [text("title"), text("note")]))
      yield* apps[0].on(putRow("books", "1", { title: "Dune", note: "sand" }))
      yield* TestClock.adjust("1 second")
      yield* apps[2].on(removeField("books", "note"))
      yield* TestClock.adjust("1 second")
      for (const app of apps) {
        yield* assertCurrent(app, "books")
        assert.deepStrictEqual(fieldNames(yield* app.on(get("books"))), ["title"])
        assert.deepStrictEqual(yield* app.on(putRow("books", "2", { title: "Emma", note: "lost" })), { title: "Emma" })
      }
      assert.deepStrictEqual(yield* apps[1].on(rows("books")), [{ title: "Dune" }, { title: "Emma" }])
    })
  )

  it.effect("an instance that starts later has loaded the collections before its host is up", () =>
    Effect.gen(function* () {
      const { apps, assertCurrent, start } = yield* setup(1)
      yield* apps[0].on(create("books", [text("title")]))
      const late = yield* start("late")
      yield* assertCurrent(late, "books")
      assert.deepStrictEqual((yield* late.on(use((collections) => collections.list))).map(fieldNames), [["title"]])
    })
  )

  it.effect("an instance that was cut off loads everything again when it is back", () =>
    Effect.gen(function* () {
      const { apps, assertCurrent } = yield* setup(3)
      yield* apps[0].on(create("books", [text("title"), text("note")]))
      yield* TestClock.adjust("1 second")
      yield* apps[2].disconnect
      yield* apps[0].on(addField("books", text("author")))
      yield* apps[1].on(removeField("books", "note"))
      yield* apps[0].on(create("films", [text("name")]))
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(fieldNames(yield* apps[2].on(get("books"))), ["title", "note"])
      assert.strictEqual((yield* Effect.flip(apps[2].on(get("films"))))._tag, "CollectionNotFound")

      yield* apps[2].reconnect
      yield* TestClock.adjust("1 second")
      for (const app of apps) {
        yield* assertCurrent(app, "books")
        yield* assertCurrent(app, "films")
        assert.deepStrictEqual(fieldNames(yield* app.on(get("books"))), ["title", "author"])
      }
    })
  )

  it.effect("a slow load that started before a change does not bring the old state back", () =>
    Effect.gen(function* () {
      const { apps, assertCurrent, slow } = yield* setup(2)
      yield* apps[0].on(create("books", [text("title")]))
      yield* TestClock.adjust("2 seconds")
      slow.by = "2 seconds"
      // This instance reads the collection as it is now, and is told in two seconds.
      const loading = yield* Effect.forkChild(apps[1].on(use((collections) => collections.reload("books"))))
      yield* TestClock.adjust("1 milli")
      slow.by = 0
      const changing = yield* Effect.forkChild(apps[1].on(addField("books", text("author"))))
      yield* TestClock.adjust("10 seconds")
      yield* Fiber.join(loading)
      yield* Fiber.join(changing)
      yield* assertCurrent(apps[1], "books")
      assert.deepStrictEqual(fieldNames(yield* apps[1].on(get("books"))), ["title", "author"])
    })
  )

  it.effect("a change made while an instance starts is not missed", () =>
    Effect.gen(function* () {
      const { apps, assertCurrent, slow, start } = yield* setup(1)
      yield* apps[0].on(create("books", [text("title")]))
      yield* apps[0].on(addField("books", text("note")))
      yield* TestClock.adjust("2 seconds")
      slow.by = "5 seconds"
      const starting = yield* Effect.forkScoped(start("late"))
      yield* TestClock.adjust("1 second")
      slow.by = 0
      yield* apps[0].on(removeField("books", "note"))
      yield* TestClock.adjust("10 seconds")
      yield* assertCurrent(yield* Fiber.join(starting), "books")
    })
  )
})

describe("changes of one collection are made one at a time", () => {
  it.effect("two instances that remove the same field: one does, the other is told that it is gone", () =>
    Effect.gen(function* () {
      const { apps, changes, slow } = yield* setup(2)
      yield* apps[0].on(create("books", [text("title"), text("note")]))
      yield* TestClock.adjust("1 second")
      slow.by = "100 millis"
      const removing = yield* Effect.forkChild(
        Effect.forEach(apps.slice(0, 2), (app) => Effect.result(app.on(removeField("books", "note"))), {
          concurrency: "unbounded"
        })
      )
      yield* TestClock.adjust("10 seconds")
      const results = yield* Fiber.join(removing)
      assert.strictEqual(results.filter(Result.isSuccess).length, 1)
      const failures = results.filter(Result.isFailure).map(({ failure }) => failure)
      assert.deepStrictEqual(
        failures.map(({ _tag }) => _tag),
        ["FieldNotFound"]
      )
      assert.include(failures[0]!.message, "note")
      assert.strictEqual(changes.overlapping, 0)
    })
  )

  it.effect("inside the lock changes never overlap, and fields added at once on several instances are all there", () =>
    Effect.gen(function* () {
      const { apps, assertCurrent, changes, slow } = yield* setup(3)
      yield* apps[0].on(create("books", [text("old")]))
      yield* TestClock.adjust("1 second")
      slow.by = "100 millis"
      const names = Array.from({ length: 12 }, (_, i) => `f${i}`)
      const changing = yield* Effect.forkChild(
        Effect.all(
          [
            ...names.map((name, i) => apps[i % 3]!.on(addField("books", text(name)))),
            apps[1].on(removeField("books", "old"))
          ],
          { concurrency: "unbounded" }
        )
      )
      yield* TestClock.adjust("1 minute")
      yield* Fiber.join(changing)
      assert.strictEqual(changes.overlapping, 0)
      assert.strictEqual(changes.most, 1)
      slow.by = 0
      for (const app of apps) {
        yield* assertCurrent(app, "books")
        assert.sameMembers(fieldNames(yield* app.on(get("books"))), names)
      }
    })
  )

  it.effect("changes of different collections do not wait for each other", () =>
    Effect.gen(function* () {
      const { apps, changes, slow } = yield* setup(2)
      yield* apps[0].on(create("books"))
      yield* apps[0].on(create("films"))
      yield* TestClock.adjust("1 second")
      slow.by = "100 millis"
      const changing = yield* Effect.forkChild(
        Effect.all([apps[0].on(addField("books", text("a"))), apps[1].on(addField("films", text("b")))], {
          concurrency: "unbounded"
        })
      )
      yield* TestClock.adjust("10 seconds")
      yield* Fiber.join(changing)
      assert.strictEqual(changes.most, 2)
      assert.strictEqual(changes.overlapping, 0)
    })
  )

  it.effect("the state decided on is the store's: a name just taken elsewhere is taken", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(2)
      yield* apps[0].on(create("books"))
      // The other instance has not been told yet.
      assert.strictEqual((yield* Effect.flip(apps[1].on(create("books"))))._tag, "NameTaken")
      yield* apps[1].on(addField("books", text("title")))
      assert.strictEqual((yield* Effect.flip(apps[0].on(addField("books", text("title")))))._tag, "NameTaken")
      yield* apps[0].on(removeField("books", "title"))
      assert.strictEqual((yield* Effect.flip(apps[1].on(removeField("books", "title"))))._tag, "FieldNotFound")
    })
  )

  it.effect("what is not there is a clear error", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(1)
      for (const error of [
        yield* Effect.flip(apps[0].on(addField("nope", text("a")))),
        yield* Effect.flip(apps[0].on(removeField("nope", "a"))),
        yield* Effect.flip(apps[0].on(putRow("nope", "1", {}))),
        yield* Effect.flip(apps[0].on(get("nope")))
      ]) {
        assert.strictEqual(error._tag, "CollectionNotFound")
        assert.include(error.message, "nope")
      }
    })
  )

  it.effect("a row stored twice under one id is one row", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(1)
      yield* apps[0].on(create("books", [text("title")]))
      yield* apps[0].on(putRow("books", "1", { title: "Dune" }))
      yield* apps[0].on(putRow("books", "1", { title: "Emma" }))
      assert.deepStrictEqual(yield* apps[0].on(rows("books")), [{ title: "Emma" }])
    })
  )
})

describe("a compiled validator", () => {
  const accepts: { readonly [Type in Field["type"]]: ReadonlyArray<readonly [unknown, unknown]> } = {
    text: [
      ["a", "a"],
      ["42", "42"],
      [" ", " "]
    ],
    integer: [
      [42, 42],
      ["42", 42],
      ["-7", -7],
      [0, 0],
      ["0", 0]
    ],
    number: [
      [1.5, 1.5],
      ["1.5", 1.5],
      [".5", 0.5],
      ["-1e3", -1000],
      ["0", 0]
    ],
    boolean: [
      [true, true],
      [false, false],
      ["true", true],
      ["false", false]
    ],
    date: [
      ["2026-01-31", "2026-01-31"],
      ["2024-02-29", "2024-02-29"]
    ]
  }
  const refuses: { readonly [Type in Field["type"]]: ReadonlyArray<unknown> } = {
    text: [1, true, {}, []],
    integer: ["1.5", 1.5, "x", "4 2", "1e", true, Number.NaN, Number.POSITIVE_INFINITY, "Infinity"],
    number: ["x", "1,5", "0x10", "1e999", true, Number.NaN, "NaN", {}],
    boolean: ["TRUE", "yes", 1, 0, "1"],
    date: ["2026-13-01", "2026-02-30", "31.01.2026", "2026-1-1", 20260131, "2026-01-31T00:00:00Z"]
  }

  for (const type of ["text", "integer", "number", "boolean", "date"] as const) {
    const validate = Collection.compile({ name: "c", fields: [{ name: "f", type, required: true }] })

    it(`of a ${type} field takes values and the text that stands for them`, () => {
      for (const [input, value] of accepts[type]) {
        assert.deepStrictEqual(Result.getOrThrow(validate({ f: input })) as {}, { f: value }, JSON.stringify(input))
      }
    })

    it(`of a ${type} field refuses everything else, and says what it expected`, () => {
      for (const input of refuses[type]) {
        const result = validate({ f: input })
        assert.isTrue(Result.isFailure(result), JSON.stringify(input))
        if (Result.isFailure(result)) assert.match(result.failure, /^f: expected a/)
      }
    })

    it(`of a ${type} field takes nothing for null where it is not required, and refuses it where it is`, () => {
      const optional = Collection.compile({ name: "c", fields: [{ name: "f", type, required: false }] })
      for (const input of [{}, { f: null }, { f: "" }, { f: undefined }]) {
        assert.deepStrictEqual(optional(input), Result.succeed({ f: null }))
        assert.deepStrictEqual(validate(input), Result.fail("f: is required"))
      }
    })
  }

  it("keeps the collection's fields and nothing else", () => {
    const validate = Collection.compile({ name: "c", fields: [text("a"), text("b")] })
    assert.deepStrictEqual(validate({ b: "2", c: "3", a: "1" }), Result.succeed({ a: "1", b: "2" }))
  })

  it("refuses what is not a row", () => {
    const validate = Collection.compile({ name: "c", fields: [text("a")] })
    for (const input of [null, undefined, "a", 1, [], ["a"]]) {
      assert.deepStrictEqual(validate(input), Result.fail("not a row"))
    }
  })

  it("takes no field from an object's prototype", () => {
    const validate = Collection.compile({ name: "c", fields: [text("constructor"), text("toString")] })
    assert.deepStrictEqual(Result.getOrThrow(validate({})) as {}, { constructor: null, toString: null })
  })
})
