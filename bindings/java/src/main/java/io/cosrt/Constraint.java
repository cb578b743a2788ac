// What a text must be.

package io.cosrt;

/**
 * What the text behind the last prompt must be. It needs the tokenizer.json of the models. A stop token may come where
 * the text may end. A text that nothing can follow ends with {@link Finish#COMPLETE}.
 */
public final class Constraint {
    static final int NONE = 0;
    private static final int JSON_SCHEMA = 1;
    private static final int REGEX = 2;
    private static final int LARK = 3;
    private static final int CHOICES = 4;

    final int kind;
    final byte[] source;

    private Constraint(int kind, String source) {
        this.kind = kind;
        this.source = Utf8.encode(source);
    }

    /**
     * The text is a JSON value that a JSON schema allows. llguidance says which keywords it knows; others are an error.
     */
    public static Constraint jsonSchema(String schema) {
        return new Constraint(JSON_SCHEMA, schema);
    }

    /** The whole text matches a regular expression, in the syntax of Rust's crate regex, without look-around. */
    public static Constraint regex(String expression) {
        return new Constraint(REGEX, expression);
    }

    /** The text follows a grammar in the dialect of Lark that llguidance has. Its first rule is "start". */
    public static Constraint lark(String grammar) {
        return new Constraint(LARK, grammar);
    }

    /** The text is one of these strings. */
    public static Constraint choices(String... choices) {
        StringBuilder json = new StringBuilder("[");
        for (String choice : choices) {
            json.append(json.length() == 1 ? "\"" : ",\"");
            for (char character : choice.toCharArray()) {
                if (character == '"' || character == '\\' || character < ' ') {
                    json.append("\\u%04x".formatted((int) character));
                } else {
                    json.append(character);
                }
            }
            json.append('"');
        }
        return new Constraint(CHOICES, json.append(']').toString());
    }
}
