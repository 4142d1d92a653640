/**
 * Collections, fields and rows.
 *
 * @since 0.1.0
 */
export * as Collection from "./Collection.ts"
export * as CollectionStore from "./CollectionStore.ts"
export * as CollectionStoreSql from "./CollectionStoreSql.ts"
export * as Collections from "./Collections.ts"
export * as CsvFiles from "./CsvFiles.ts"
export * as ImportCsv from "./ImportCsv.ts"
export { plugin } from "./plugin.ts"
