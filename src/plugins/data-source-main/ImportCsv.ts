/**
 * Imports a CSV file into a collection, as a task.
 *
 * The first line names the columns. Every row is validated by the collection as it
 * is when the row's batch is written; rows that are refused are counted, and the first of them
 * reported with their line numbers. Rows are stored under the file's name and their number, so an
 * import that is retried, or run twice, stores each row once.
 *
 * @since 0.1.0
 */
import { type Info, type Options, parse } from "csv-parse"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as Task from "../async-task-manager/Task.ts"
import { CollectionStore } from "./CollectionStore.ts"
import { Collections } from "./Collections.ts"
import { CsvFileError, CsvFiles } from "./CsvFiles.ts"

/** How many refused rows are reported one by one. */
const maxReported = 100

/** Rows that are validated and written in one go. */
const batchSize = 500

/**
 * What an import is asked to do. `from` and `to` choose data rows, 1-based and
 * inclusive, so that a large file can be imported by several tasks.
 *
 * @since 0.1.0
 */
export const ImportParams = Schema.Struct({
  collection: Schema.NonEmptyString,
  file: Schema.NonEmptyString,
  from: Schema.optionalKey(Schema.Int.check(Schema.isGreaterThan(0))),
  to: Schema.optionalKey(Schema.Int.check(Schema.isGreaterThan(0)))
})

/**
 * What an import did.
 *
 * @since 0.1.0
 */
export const ImportResult = Schema.Struct({
  imported: Schema.Int,
  rejected: Schema.Int,
  /** The first 100 rejected rows; lines as an editor counts them. */
  rejectedRows: Schema.Array(Schema.Struct({ line: Schema.Int, reason: Schema.String }))
})

/**
 * The task type.
 *
 * @since 0.1.0
 */
export const ImportCsv = Task.type("import-csv", { params: ImportParams, result: ImportResult, maxRetries: 1 })

/** One record of a CSV file, and its last line. `row` counts the data rows that are CSV, from 1. */
interface Record {
  readonly line: number
  readonly row: number
  readonly values: { readonly [column: string]: string }
}

/**
 * Runs an import; the handler of {@link ImportCsv}.
 *
 * @since 0.1.0
 */
export const run = Effect.fnUntraced(function* (params: typeof ImportParams.Type, task: Task.TaskRun) {
  const collections = yield* Collections
  const store = yield* CollectionStore
  const files = yield* CsvFiles
  const { collection, file, from = 1, to = Number.POSITIVE_INFINITY } = params

  yield* collections.get(collection)
  const size = yield* files.size(file)
  const rejectedRows: Array<{ readonly line: number; readonly reason: string }> = []
  let bytes = 0
  let imported = 0
  let rejected = 0

  const reject = (line: number, reason: string) => {
    rejected++
    if (rejectedRows.length < maxReported) rejectedRows.push({ line, reason })
  }

  const write = Effect.fnUntraced(function* (batch: ReadonlyArray<Record>) {
    const validate = yield* collections.validator(collection)
    const rows = batch.flatMap(({ line, row, values }) => {
      const valid = validate(values)
      if (Result.isSuccess(valid)) return [{ id: `${file}:${row}`, row: valid.success }]
      reject(firstLine(line, values), valid.failure)
      return []
    })
    yield* store.putRows(collection, rows)
    imported += rows.length
    yield* task.progress({ done: Math.min(bytes, size), total: size })
    // Let others have a turn: cancellation, and the other tasks of this instance.
    yield* Effect.yieldNow
  })

  yield* files.read(file).pipe(
    Stream.tap((chunk) =>
      Effect.sync(() => {
        bytes += chunk.length
      })
    ),
    records(file, (row, line, reason) => {
      if (row >= from && row <= to) reject(line, reason)
    }),
    Stream.filter(({ row }) => row >= from),
    Stream.takeWhile(({ row }) => row <= to),
    Stream.grouped(batchSize),
    Stream.runForEach(write)
  )
  yield* task.progress({ done: size, total: size })
  // Lines that are not CSV are noticed before the rows of their batch are validated.
  rejectedRows.sort((a, b) => a.line - b.line)
  return { imported, rejected, rejectedRows }
})

/** The line a record starts on: quoted values may have line breaks of their own. */
const firstLine = (lastLine: number, values: Record["values"]): number =>
  Object.values(values).reduce((line, value) => line - (value.match(/\r\n|\n|\r/g)?.length ?? 0), lastLine)

/** Parses CSV text into records; lines that are not CSV are rejected and passed over. */
const records =
  (file: string, reject: (row: number, line: number, reason: string) => void) =>
  <E>(bytes: Stream.Stream<Uint8Array, E>): Stream.Stream<Record, E | CsvFileError> =>
    Stream.suspend(() => {
      const options: Options & { readonly readableHighWaterMark: number } = {
        bom: true,
        columns: true,
        info: true,
        // A stray quote is taken as it is: to reject it would swallow the lines up to the next one.
        relax_quotes: true,
        skip_empty_lines: true,
        skip_records_with_error: true,
        // A write calls back when its text is parsed, however many records that makes.
        readableHighWaterMark: Number.MAX_SAFE_INTEGER,
        on_skip: (error) => {
          if (error !== undefined) reject(Number(error.records) + 1, Number(error.lines), error.message)
        }
      }
      const parser = parse(options)
      // Errors come through the callbacks of `write` and `end`; without a listener Node would throw them.
      parser.on("error", () => {})
      const feed = (chunk: Uint8Array | undefined) =>
        Effect.callback<ReadonlyArray<Record>, CsvFileError>((resume) => {
          const done = (error?: Error | null) => {
            if (error) return resume(Effect.fail(new CsvFileError({ file, detail: error.message })))
            const read: Array<Record> = []
            const next = (): { readonly info: Info; readonly record: Record["values"] } | null => parser.read()
            for (let found = next(); found !== null; found = next()) {
              read.push({ line: found.info.lines, row: found.info.records, values: found.record })
            }
            resume(Effect.succeed(read))
          }
          if (chunk === undefined) parser.end(done)
          else parser.write(chunk, done)
        })
      return bytes.pipe(
        Stream.mapEffect(feed),
        Stream.concat(Stream.fromEffect(Effect.suspend(() => feed(undefined)))),
        Stream.flattenIterable
      )
    })
