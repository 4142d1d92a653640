/**
 * The CSV files that may be imported.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"

/**
 * A file cannot be read; `detail` says why.
 *
 * @since 0.1.0
 */
export class CsvFileError extends Schema.TaggedError<CsvFileError>("cohort/plugins/CsvFileError")("CsvFileError", {
  file: Schema.String,
  detail: Schema.String
}) {
  override get message(): string {
    return `${this.file}: ${this.detail}`
  }
}

/**
 * @since 0.1.0
 */
export class CsvFiles extends Context.Service<
  CsvFiles,
  {
    /** Size in bytes. */
    readonly size: (file: string) => Effect.Effect<number, CsvFileError>
    readonly read: (file: string) => Stream.Stream<Uint8Array, CsvFileError>
  }
>()("cohort/plugins/data-source-main/CsvFiles") {}

/**
 * The files of one directory. A name that leads out of it is refused.
 *
 * @since 0.1.0
 */
export const layerDirectory = (directory: string): Layer.Layer<CsvFiles, never, FileSystem.FileSystem | Path.Path> =>
  Layer.effect(
    CsvFiles,
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const path = yield* Path.Path

      const resolve = (file: string) =>
        path.basename(file) === file && file !== "" && file !== "." && file !== ".."
          ? Effect.succeed(path.join(directory, file))
          : Effect.fail(new CsvFileError({ file, detail: "not the name of a file" }))

      const unreadable = (file: string) => (error: { readonly message: string }) =>
        new CsvFileError({ file, detail: error.message })

      return CsvFiles.of({
        size: (file) =>
          Effect.flatMap(resolve(file), (path) =>
            Effect.map(Effect.mapError(fs.stat(path), unreadable(file)), (info) => Number(info.size))
          ),
        read: (file) =>
          Stream.unwrap(Effect.map(resolve(file), (path) => Stream.mapError(fs.stream(path), unreadable(file))))
      })
    })
  )
