// Tests the program of the README.

package io.cosrt;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;

/** The program in README.md is examples/Chat.java, and it works in a process of its own. */
class ReadmeTest {
    private static final Path CHAT = Path.of(System.getProperty("binding"), "examples", "Chat.java");

    @Test
    void showsTheProgram() throws Exception {
        String readme = Files.readString(Path.of(System.getProperty("binding"), "README.md"));
        assertTrue(readme.contains("```java\n" + Files.readString(CHAT) + "```\n"), "README.md and Chat.java differ");
        assertTrue(Files.readAllLines(CHAT).size() <= 20);
    }

    @Test
    void theProgramWorks() throws Exception {
        Process process = new ProcessBuilder(Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-cp", System.getProperty("classes"), CHAT.toString()).redirectErrorStream(true).start();
        String text = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        assertEquals(0, process.waitFor(), text);
        assertTrue(text.length() > 50, text);
    }
}
