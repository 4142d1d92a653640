/** The proxy that the contract suites cut instances off with. */
export * from "../../src/testing/contracts/TcpProxy.ts"
