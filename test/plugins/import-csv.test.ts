import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import { EventQueue, PluginHost } from "../../src/index.ts"
import { Task, Tasks, TaskStore } from "../../src/plugins/async-task-manager/index.ts"
import {
  type Collection,
  Collections,
  CollectionStore,
  CsvFiles,
  ImportCsv,
  plugin
} from "../../src/plugins/data-source-main/index.ts"
import { eventually, makeCluster } from "./cluster.ts"

/** Files in memory, read in chunks; reading can be slow, or fail after some chunks. */
const makeFiles = () => {
  const contents = new Map<string, Uint8Array>()
  const reading: { chunk: number; pause: boolean; failAfter: number | undefined } = {
    chunk: 65_536,
    pause: false,
    failAfter: undefined
  }
  const find = (file: string) => {
    const bytes = contents.get(file)
    return bytes === undefined
      ? Effect.fail(new CsvFiles.CsvFileError({ file, detail: "no such file" }))
      : Effect.succeed(bytes)
  }
  const chunksOf = function* (bytes: Uint8Array) {
    for (let at = 0; at < bytes.length; at += reading.chunk) yield bytes.subarray(at, at + reading.chunk)
  }
  const layer = Layer.succeed(CsvFiles.CsvFiles, {
    size: (file) => Effect.map(find(file), ({ length }) => length),
    read: (file) =>
      Stream.unwrap(
        Effect.map(find(file), (bytes) => {
          let chunks = 0
          return Stream.fromIterable(chunksOf(bytes)).pipe(
            Stream.rechunk(1),
            Stream.tap(() => {
              if (chunks++ === reading.failAfter) {
                reading.failAfter = undefined
                return Effect.fail(new CsvFiles.CsvFileError({ file, detail: "the disk has gone" }))
              }
              return reading.pause ? Effect.sleep("1 second") : Effect.void
            })
          )
        })
      )
  })
  const write = (file: string, text: string) =>
    Effect.sync(() => void contents.set(file, new TextEncoder().encode(text)))
  return { layer, reading, write }
}

const books: Collection.Collection = {
  name: "books",
  fields: [
    { name: "title", type: "text", required: true },
    { name: "year", type: "integer", required: false }
  ]
}

const setup = (instances = 1) =>
  Effect.gen(function* () {
    const files = makeFiles()
    const cluster = yield* makeCluster({
      stores: Layer.mergeAll(CollectionStore.layerMemory, TaskStore.layerMemory, files.layer),
      services: Layer.mergeAll(Tasks.layer, Collections.layer),
      host: PluginHost.layer([plugin, Tasks.plugin])
    })
    const apps = []
    for (let i = 0; i < instances; i++) apps.push(yield* cluster.start(`i${i}`))
    yield* apps[0]!.on(Collections.Collections.use((collections) => collections.create(books)))
    yield* TestClock.adjust("1 second")
    type App = (typeof apps)[number]
    const [app] = apps as [App]

    const start = (params: typeof ImportCsv.ImportParams.Type) =>
      app.on(Tasks.Tasks.use((tasks) => tasks.start(ImportCsv.ImportCsv, params)))
    const get = (id: string) => app.on(Tasks.Tasks.use((tasks) => tasks.get(id)))
    const ended = (id: string) =>
      Effect.andThen(
        eventually(
          Effect.map(get(id), ({ status }) => Task.isEnded(status)),
          "the import ends"
        ),
        get(id)
      )
    /** Imports as a task, and returns what the import says of itself. */
    const run = (params: Partial<typeof ImportCsv.ImportParams.Type> = {}) =>
      Effect.gen(function* () {
        const id = yield* start({ collection: "books", file: "books.csv", ...params })
        const task = yield* ended(id)
        assert.strictEqual(task.status, "succeeded", task.error ?? "")
        return Option.getOrThrow(yield* app.on(Tasks.Tasks.use((tasks) => tasks.result(ImportCsv.ImportCsv, id))))
      })
    const rows = app.on(CollectionStore.CollectionStore.use((store) => store.rows("books", { offset: 0, limit: 1e6 })))
    const titles = Effect.map(rows, (rows) => rows.map(({ title }) => title))

    return { ...files, app, apps: apps as [App, App], start, get, ended, run, rows, titles }
  })

const lines = (...lines: ReadonlyArray<string>) => lines.map((line) => `${line}\n`).join("")
const numbered = (count: number) =>
  lines("title,year", ...Array.from({ length: count }, (_, i) => `Book ${i + 1},${1_000 + (i % 1_000)}`))

describe("what an import stores", () => {
  it.effect("rows that are valid, as the collection's types; columns it does not have are left out", () =>
    Effect.gen(function* () {
      const { rows, run, write } = yield* setup()
      yield* write(
        "books.csv",
        lines("year,title,note", "1965,Dune,sand", ",Emma,", `"1851","Moby-Dick; or, ""The Whale""",`)
      )
      assert.deepStrictEqual(yield* run(), { imported: 3, rejected: 0, rejectedRows: [] })
      assert.deepStrictEqual(yield* rows, [
        { title: "Dune", year: 1965 },
        { title: "Emma", year: null },
        { title: `Moby-Dick; or, "The Whale"`, year: 1851 }
      ])
    })
  )

  it.effect(
    "values with line breaks, separators and letters of any language stay whole, however the file is read",
    () =>
      Effect.gen(function* () {
        const { reading, rows, run, write } = yield* setup()
        reading.chunk = 3
        yield* write("books.csv", lines("title,year", `"two\nlines, and ""more""",1`, "Österreich 東京 🦊,2"))
        assert.strictEqual((yield* run()).imported, 2)
        assert.deepStrictEqual(yield* rows, [
          { title: `two\nlines, and "more"`, year: 1 },
          { title: "Österreich 東京 🦊", year: 2 }
        ])
      })
  )

  for (const [what, text] of [
    ["a byte order mark", "\uFEFFtitle,year\nDune,1965\n"],
    ["Windows line ends", "title,year\r\nDune,1965\r\n"],
    ["no line end after the last row", "title,year\nDune,1965"],
    ["empty lines", "title,year\n\nDune,1965\n\n\n"]
  ] as const) {
    it.effect(`a file with ${what}`, () =>
      Effect.gen(function* () {
        const { rows, run, write } = yield* setup()
        yield* write("books.csv", text)
        assert.deepStrictEqual(yield* run(), { imported: 1, rejected: 0, rejectedRows: [] })
        assert.deepStrictEqual(yield* rows, [{ title: "Dune", year: 1965 }])
      })
    )
  }

  for (const [what, text] of [
    ["an empty file", ""],
    ["a file with nothing but a byte order mark", "\uFEFF"],
    ["a file with nothing but its columns", "title,year\n"]
  ] as const) {
    it.effect(`nothing, of ${what}`, () =>
      Effect.gen(function* () {
        const { rows, run, write } = yield* setup()
        yield* write("books.csv", text)
        assert.deepStrictEqual(yield* run(), { imported: 0, rejected: 0, rejectedRows: [] })
        assert.deepStrictEqual(yield* rows, [])
      })
    )
  }

  it.effect("each batch is validated by the collection as it is then", () =>
    Effect.gen(function* () {
      const { app, get, reading, rows, start, ended, write } = yield* setup()
      reading.pause = true
      reading.chunk = 4_096
      yield* write("books.csv", numbered(3_000))
      const id = yield* start({ collection: "books", file: "books.csv" })
      yield* eventually(
        Effect.map(get(id), ({ progress }) => progress.done > 0),
        "the first batch is written"
      )
      yield* app.on(Collections.Collections.use((collections) => collections.removeField("books", "year")))
      yield* ended(id)
      const stored = yield* rows
      assert.strictEqual(stored.length, 3_000)
      assert.isTrue(stored.every((row) => !("year" in row)))
    })
  )
})

describe("what an import rejects", () => {
  it.effect("rows that are not valid, with the line each starts on, as an editor counts them, and the reason", () =>
    Effect.gen(function* () {
      const { run, titles, write } = yield* setup()
      yield* write(
        "books.csv",
        lines(
          /* 1 */ "title,year",
          /* 2 */ "Dune,1965",
          /* 3 */ "Emma,eighteen",
          /* 4 */ "",
          /* 5 */ ",1900",
          /* 6 */ `"on two`,
          /* 7 */ `lines",1999`,
          /* 8 */ `"also on`,
          /* 9 */ `three`,
          /* 10 */ `lines",12.5`,
          /* 11 */ "Middlemarch,1871"
        )
      )
      assert.deepStrictEqual(yield* run(), {
        imported: 3,
        rejected: 3,
        rejectedRows: [
          { line: 3, reason: `year: expected a whole number, got "eighteen"` },
          { line: 5, reason: "title: is required" },
          { line: 8, reason: `year: expected a whole number, got "12.5"` }
        ]
      })
      assert.deepStrictEqual(yield* titles, ["Dune", "on two\nlines", "Middlemarch"])
    })
  )

  it.effect("lines that are not CSV, and goes on after them", () =>
    Effect.gen(function* () {
      const { run, titles, write } = yield* setup()
      yield* write(
        "books.csv",
        lines("title,year", "Dune,1965", "too,many,columns", "Emma,old", "few", "Middlemarch,1871")
      )
      const { imported, rejected, rejectedRows } = yield* run()
      assert.deepStrictEqual([imported, rejected], [2, 3])
      assert.deepStrictEqual(
        rejectedRows.map(({ line }) => line),
        [3, 4, 5]
      )
      assert.match(rejectedRows[0]!.reason, /columns length is 2, got 3/i)
      assert.match(rejectedRows[2]!.reason, /columns length is 2, got 1/i)
      assert.deepStrictEqual(yield* titles, ["Dune", "Middlemarch"])
    })
  )

  it.effect("no other line because of a stray quote, which is taken as it is", () =>
    Effect.gen(function* () {
      const { run, titles, write } = yield* setup()
      yield* write("books.csv", lines("title,year", `"quoted" badly,x`, `5" disks,1980`, `a "b" c,1981`, `"Emma",1815`))
      const { imported, rejectedRows } = yield* run()
      assert.strictEqual(imported, 3)
      assert.deepStrictEqual(rejectedRows, [{ line: 2, reason: `year: expected a whole number, got "x"` }])
      assert.deepStrictEqual(yield* titles, [`5" disks`, `a "b" c`, "Emma"])
    })
  )

  it.effect("everything after a quote that is never closed, as one", () =>
    Effect.gen(function* () {
      const { run, titles, write } = yield* setup()
      yield* write("books.csv", lines("title,year", "Dune,1965", `"open,1`, "Emma,1815"))
      const { imported, rejected, rejectedRows } = yield* run()
      assert.deepStrictEqual([imported, rejected], [1, 1])
      assert.match(rejectedRows[0]!.reason, /quote/i)
      assert.deepStrictEqual(yield* titles, ["Dune"])
    })
  )

  it.effect("is counted in full, and reported for the first hundred", () =>
    Effect.gen(function* () {
      const { run, write } = yield* setup()
      yield* write("books.csv", lines("title,year", ...Array.from({ length: 250 }, () => "Dune,x")))
      const { imported, rejected, rejectedRows } = yield* run()
      assert.deepStrictEqual([imported, rejected, rejectedRows.length], [0, 250, 100])
      assert.deepStrictEqual([rejectedRows[0]!.line, rejectedRows[99]!.line], [2, 101])
    })
  )
})

describe("an import that cannot be", () => {
  it.effect("of a file that is not there fails after its attempts, and says which", () =>
    Effect.gen(function* () {
      const { ended, start } = yield* setup()
      const task = yield* ended(yield* start({ collection: "books", file: "nope.csv" }))
      assert.deepStrictEqual([task.status, task.error, task.attempts], ["failed", "nope.csv: no such file", 2])
    })
  )

  it.effect("into a collection that is not there fails", () =>
    Effect.gen(function* () {
      const { ended, start, write } = yield* setup()
      yield* write("books.csv", numbered(1))
      const task = yield* ended(yield* start({ collection: "nope", file: "books.csv" }))
      assert.deepStrictEqual([task.status, task.error], ["failed", `there is no collection "nope"`])
    })
  )

  it.effect("with parameters that make no sense is refused at once", () =>
    Effect.gen(function* () {
      const { app } = yield* setup()
      for (const params of [
        { collection: "books" },
        { collection: "", file: "books.csv" },
        { collection: "books", file: "books.csv", from: 0 },
        { collection: "books", file: "books.csv", to: 1.5 },
        { collection: "books", file: "books.csv", from: "1" }
      ]) {
        const error = yield* Effect.flip(app.on(Tasks.Tasks.use((tasks) => tasks.startUnknown("import-csv", params))))
        assert.strictEqual(error._tag, "InvalidTask", JSON.stringify(params))
      }
    })
  )
})

describe("an import in parts", () => {
  it.effect("from and to choose data rows, both included", () =>
    Effect.gen(function* () {
      const { run, titles, write } = yield* setup()
      yield* write("books.csv", numbered(10))
      assert.strictEqual((yield* run({ from: 3, to: 5 })).imported, 3)
      assert.deepStrictEqual(yield* titles, ["Book 3", "Book 4", "Book 5"])
      assert.strictEqual((yield* run({ from: 11 })).imported, 0)
      assert.strictEqual((yield* run({ from: 5, to: 4 })).imported, 0)
    })
  )

  it.effect("partitions spread over the instances import and reject each row exactly once", () =>
    Effect.gen(function* () {
      const { app, apps, ended, start, titles, write } = yield* setup(2)
      const rows = Array.from({ length: 2_000 }, (_, i) =>
        i % 100 === 7 ? "not,a,row" : i % 100 === 9 ? `Book ${i},x` : `Book ${i},${i}`
      )
      yield* write("books.csv", lines("title,year", ...rows))
      const ids = [
        yield* start({ collection: "books", file: "books.csv", to: 700 }),
        yield* start({ collection: "books", file: "books.csv", from: 701, to: 707 }),
        yield* start({ collection: "books", file: "books.csv", from: 708, to: 1_400 }),
        yield* start({ collection: "books", file: "books.csv", from: 1_401 })
      ]
      const rejectedLines: Array<number> = []
      let [imported, rejected] = [0, 0]
      for (const id of ids) {
        assert.strictEqual((yield* ended(id)).status, "succeeded")
        const part = Option.getOrThrow(
          yield* apps[1].on(Tasks.Tasks.use((tasks) => tasks.result(ImportCsv.ImportCsv, id)))
        )
        imported += part.imported
        rejected += part.rejected
        rejectedLines.push(...part.rejectedRows.map(({ line }) => line))
      }
      const bad = rows.flatMap((_, i) => (i % 100 === 7 || i % 100 === 9 ? [i + 2] : []))
      assert.deepStrictEqual([imported, rejected], [2_000 - bad.length, bad.length])
      assert.sameMembers(rejectedLines, bad)
      const stored = yield* titles
      assert.strictEqual(stored.length, imported)
      assert.strictEqual(new Set(stored).size, imported)
      assert.deepStrictEqual(yield* app.on(EventQueue.depth(Tasks.RunTask)), {
        ready: 0,
        delayed: 0,
        inFlight: 0,
        dead: 0
      })
    })
  )
})

describe("an import that is run again, cancelled or watched", () => {
  it.effect("one that fails midway is tried again, and stores each row once", () =>
    Effect.gen(function* () {
      const { ended, reading, start, titles, write } = yield* setup()
      reading.chunk = 4_096
      reading.failAfter = 5
      yield* write("books.csv", numbered(3_000))
      const id = yield* start({ collection: "books", file: "books.csv" })
      yield* eventually(
        Effect.sync(() => reading.failAfter === undefined),
        "the disk goes"
      )
      const before = (yield* titles).length
      assert.isAbove(before, 0)
      assert.isBelow(before, 3_000)
      const task = yield* ended(id)
      assert.deepStrictEqual([task.status, task.attempts], ["succeeded", 2])
      const stored = yield* titles
      assert.strictEqual(stored.length, 3_000)
      assert.strictEqual(new Set(stored).size, 3_000)
    })
  )

  it.effect("one that is run twice stores each row once", () =>
    Effect.gen(function* () {
      const { run, titles, write } = yield* setup()
      yield* write("books.csv", numbered(700))
      assert.strictEqual((yield* run()).imported, 700)
      assert.strictEqual((yield* run()).imported, 700)
      assert.strictEqual((yield* titles).length, 700)
    })
  )

  it.effect("one that is cancelled from another instance stops where it is", () =>
    Effect.gen(function* () {
      const { app, apps, get, reading, start, titles, write } = yield* setup(2)
      reading.pause = true
      reading.chunk = 4_096
      yield* write("books.csv", numbered(5_000))
      const id = yield* start({ collection: "books", file: "books.csv" })
      yield* eventually(
        Effect.map(titles, ({ length }) => length > 0),
        "some rows are stored"
      )
      const runner = (yield* get(id)).instance
      const other = apps.find(({ id }) => id !== runner)!
      assert.isTrue(yield* other.on(Tasks.Tasks.use((tasks) => tasks.cancel(id))))
      yield* TestClock.adjust("1 second")
      const stored = (yield* titles).length
      assert.isBelow(stored, 5_000)
      for (const app of apps) assert.deepStrictEqual(yield* app.on(Tasks.Tasks.use((tasks) => tasks.running)), [])
      yield* TestClock.adjust("1 minute")
      assert.strictEqual((yield* titles).length, stored)
      assert.strictEqual((yield* get(id)).status, "canceled")
      assert.deepStrictEqual(yield* app.on(EventQueue.deadLetters(Tasks.RunTask)), [])
    })
  )

  it.effect("its progress is in bytes of the file, grows, and ends at the whole", () =>
    Effect.gen(function* () {
      const { ended, get, reading, start, write } = yield* setup()
      reading.pause = true
      reading.chunk = 4_096
      const text = numbered(3_000)
      yield* write("books.csv", text)
      const id = yield* start({ collection: "books", file: "books.csv" })
      const seen: Array<number> = []
      yield* eventually(
        Effect.map(get(id), ({ progress, status }) => {
          if (progress.total !== undefined) {
            assert.strictEqual(progress.total, text.length)
            if (seen.at(-1) !== progress.done) seen.push(progress.done)
          }
          return Task.isEnded(status)
        }),
        "the import ends"
      )
      assert.isAbove(seen.length, 3)
      assert.deepStrictEqual(
        seen,
        [...seen].sort((a, b) => a - b)
      )
      assert.deepStrictEqual((yield* ended(id)).progress, { done: text.length, total: text.length })
    })
  )
})

describe("the files of a directory", () => {
  const withDirectory = <A, E>(
    use: (
      files: CsvFiles.CsvFiles["Service"],
      directory: string,
      fs: FileSystem.FileSystem,
      path: Path.Path
    ) => Effect.Effect<A, E>
  ) =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const path = yield* Path.Path
      const root = yield* fs.makeTempDirectoryScoped()
      const directory = path.join(root, "files")
      yield* fs.makeDirectory(directory)
      yield* fs.writeFileString(path.join(root, "secret.csv"), "a\n1\n")
      const files = yield* Effect.provide(CsvFiles.CsvFiles, CsvFiles.layerDirectory(directory))
      return yield* use(files, directory, fs, path)
    }).pipe(Effect.provide(Layer.mergeAll(NodeFileSystem.layer, NodePath.layer)), Effect.scoped)

  it.effect("are read as they are", () =>
    withDirectory((files, directory, fs, path) =>
      Effect.gen(function* () {
        const text = numbered(20_000)
        yield* fs.writeFileString(path.join(directory, "books.csv"), text)
        assert.strictEqual(yield* files.size("books.csv"), text.length)
        const chunks = yield* Stream.runCollect(files.read("books.csv"))
        assert.strictEqual(Buffer.concat(chunks).toString(), text)
      })
    )
  )

  it.effect("import like any other", () =>
    withDirectory((files, directory, fs, path) =>
      Effect.gen(function* () {
        yield* fs.writeFileString(path.join(directory, "books.csv"), numbered(2_000))
        const collections = yield* setup()
        const result = yield* collections.app.on(
          Effect.provideService(
            ImportCsv.run(
              { collection: "books", file: "books.csv" },
              { id: "t", attempt: 1, progress: () => Effect.void }
            ),
            CsvFiles.CsvFiles,
            files
          )
        )
        assert.deepStrictEqual(result, { imported: 2_000, rejected: 0, rejectedRows: [] })
        assert.strictEqual((yield* collections.rows).length, 2_000)
      }).pipe(Effect.scoped)
    )
  )

  it.effect("that are not there, or not files, are a clear error", () =>
    withDirectory((files, directory, fs, path) =>
      Effect.gen(function* () {
        yield* fs.makeDirectory(path.join(directory, "folder"))
        assert.strictEqual((yield* Effect.flip(files.size("nope.csv"))).file, "nope.csv")
        for (const file of ["nope.csv", "folder"]) {
          const error = yield* Effect.flip(Stream.runCollect(files.read(file)))
          assert.strictEqual(error._tag, "CsvFileError")
          assert.include(error.message, file)
        }
      })
    )
  )

  it.effect("are those of that directory only: a name that leads out of it is refused", () =>
    withDirectory((files) =>
      Effect.gen(function* () {
        for (const file of ["../secret.csv", "..", ".", "", "/etc/passwd", "folder/../../secret.csv"]) {
          for (const error of [
            yield* Effect.flip(files.size(file)),
            yield* Effect.flip(Stream.runCollect(files.read(file)))
          ]) {
            assert.strictEqual(error.detail, "not the name of a file", file)
          }
        }
      })
    )
  )
})
