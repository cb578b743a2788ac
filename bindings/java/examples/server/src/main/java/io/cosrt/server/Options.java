// The command line.

package io.cosrt.server;

import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** What the command line says. */
final class Options {
    private record Number(int value, int least, int most, String meaning) {
        boolean allows(String text) {
            return text.matches("\\d{1,10}") && Long.parseLong(text) >= least && Long.parseLong(text) <= most;
        }
    }

    private static final int ANY = Integer.MAX_VALUE;
    private static final Map<String, String> TEXTS = Map.of("--host", "address where it listens; default 127.0.0.1",
            "--api-keys", "file of keys, one a line; empty lines and lines that begin with # are none");
    private static final Map<String, Number> NUMBERS = new TreeMap<>(Map.of(
            "--port", new Number(8080, 0, 65535, "0 is any free port"),
            "--max-sessions", new Number(32, 1, ANY, "choices that are decoded at once"),
            "--queue", new Number(64, 0, 100_000, "requests that wait for that"),
            "--prepare", new Number(10, 0, 86400, "seconds to prepare the engine before it listens; 0: not at all"),
            "--rate", new Number(0, 0, ANY, "requests a minute of each key, or address without keys; 0: no limit"),
            "--max-body", new Number(4 << 20, 1, ANY, "bytes of the largest body"),
            "--max-prompt", new Number(0, 0, ANY, "tokens of the longest prompt; 0: as the context allows"),
            "--max-tokens", new Number(0, 0, ANY, "tokens of the longest choice; 0: as the body says"),
            "--timeout", new Number(30, 1, 3600, "seconds for sending a request or taking a part of an answer")));

    private final Map<String, String> given = new HashMap<>();

    /** Ends the process if the arguments ask for help, or are wrong. */
    Options(String[] arguments) {
        boolean wantsHelp = List.of(arguments).equals(List.of("--help"));
        boolean isGood = arguments.length % 2 == 1 && !arguments[0].startsWith("-");
        for (int i = 1; isGood && i < arguments.length; i += 2) {
            Number number = NUMBERS.get(arguments[i]);
            isGood = number == null ? TEXTS.containsKey(arguments[i]) : number.allows(arguments[i + 1]);
            given.put(arguments[i], arguments[i + 1]);
        }
        if (isGood) {
            given.put("CONFIG", arguments[0]);
            return;
        }
        (wantsHelp ? System.out : System.err).println("usage: server CONFIG.json [OPTION VALUE]...");
        if (wantsHelp) {
            TEXTS.forEach((name, meaning) -> System.out.printf("  %-15s %s%n", name, meaning));
            NUMBERS.forEach((name, number) ->
                    System.out.printf("  %-15s %s; default %d%n", name, number.meaning, number.value));
        }
        System.exit(wantsHelp ? 0 : 2);
    }

    Path config() {
        return Path.of(given.get("CONFIG"));
    }

    String host() {
        return given.getOrDefault("--host", "127.0.0.1");
    }

    /** The file of keys, or null. */
    Path keys() {
        return given.containsKey("--api-keys") ? Path.of(given.get("--api-keys")) : null;
    }

    int number(String name) {
        return given.containsKey(name) ? Integer.parseInt(given.get(name)) : NUMBERS.get(name).value;
    }
}
